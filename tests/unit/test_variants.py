"""Tables and grids of variants: what each row becomes, and the one line for each thing that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.errors import UserError
from limner.variants import parse_axes, read_variants, values_in

DOG = (Path("dog"),)


def read(tmp_path: Path, text: str, *, name: str = "runs.csv", pictures: tuple[Path, ...] = ()):
    (tmp_path / name).write_text(text)
    return read_variants(tmp_path / name, pictures)


def test_a_table_gives_each_row_its_name_pictures_and_settings(tmp_path: Path) -> None:
    text = (
        "name,pictures,token,class_noun,adapter.rank,learning_rate\na,dogs,123,dog,4,1e-3\n\nb,../cats,sks,cat,8,3e-4\n"
    )
    first, second = read(tmp_path, text)
    assert (first.name, first.pictures) == ("a", (tmp_path / "dogs",))
    assert first.settings == {
        "pictures.token": "123", "pictures.class_noun": "dog", "adapter.rank": 4, "learning_rate": 1e-3}  # fmt: skip
    assert second.pictures == (tmp_path / "../cats",)
    assert second.where.endswith("runs.csv, row 4")


def test_a_row_without_a_name_is_named_after_what_sets_it_apart(tmp_path: Path) -> None:
    rows = read(tmp_path, "\ufeffadapter.rank;seed;steps\n4;0;9\n8;1;9\n", pictures=DOG)
    assert [one.name for one in rows] == ["rank=4,seed=0", "rank=8,seed=1"]
    rows = read(tmp_path, "pictures,optimizer.kind\na/dog,adamw\na/cat,adamw\n")
    assert [one.name for one in rows] == ["dog", "cat"]
    (alone,) = read(tmp_path, "seed\n3\n", pictures=DOG)
    assert alone.name == "dog"


def test_toml_and_mappings_say_the_same(tmp_path: Path) -> None:
    text = '[[variant]]\npictures = "dogs"\nadapter.rank = 4\n[[variant]]\nname = "b"\npictures = "dogs"\nseed = 1\n'
    first, second = read(tmp_path, text, name="runs.toml")
    assert (first.name, first.settings) == ("rank=4", {"adapter.rank": 4})
    assert (second.name, second.settings) == ("b", {"seed": 1})
    (same,) = read_variants([{"name": "b", "seed": 1, "prior.enabled": True}], DOG)
    assert same.settings == {"seed": 1, "prior.enabled": True}


def test_a_grid_is_every_combination() -> None:
    rows = read_variants("adapter.rank=4,8 learning_rate=1e-3,3e-4", DOG)
    assert [one.name for one in rows] == [
        "rank=4,learning_rate=1e-3", "rank=4,learning_rate=3e-4", "rank=8,learning_rate=1e-3",
        "rank=8,learning_rate=3e-4"]  # fmt: skip
    assert rows[1].settings == {"adapter.rank": 4, "learning_rate": 3e-4}
    assert parse_axes(["seed=3"], "") == {"seed": ["3"]}
    assert values_in('[1, 2],"a, b", c') == ["[1, 2]", '"a, b"', "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter.rnk\n4\n", r"row 1: 'adapter.rnk' is no setting, .* Did you mean adapter.rank\?"),
        ("base\ntiny\n", r"row 1: base is the same for all slots .* may differ in steps, .*, prior\.\*, .*base=\.\.\."),
        ("adapter.targets\nall\n", "row 1: adapter.targets is the same for all"),
        ("prior.teacher\ntrue\n", "row 1: prior.teacher is the same for all"),
        ("seed,seed\n1,2\n", "row 1: column 'seed' is there twice"),
        ("seed,steps\n1,2\n3,\n", "row 3: steps is empty. Fill it in, or leave the column out"),
        ("seed,steps\n1\n", "row 2: has 1 cells, and the first row names 2 columns"),
        ("name,seed\na,1\nb,2\nA,3\n", "row 4: has the name 'A', as .*row 2 has. Give each its own"),
        ("seed\n1\n1\n", "row 3: has the name 'dog', as .*row 2 has"),
        ("name,seed\n../a,1\n", r"row 2: the name '\.\./a' cannot be that of a run's folder"),
        ("name,seed\nsubjects.json,1\n", "row 2: the name 'subjects.json' cannot be"),
        ("token,pictures.token\na,b\n", "row 2: token or class_noun is there twice"),
        ("pictures,seed\ncat,1\n", "row 2: names pictures, and pictures were given for all"),
        ("seed\n", "runs.csv: has no rows"),
        ("", "runs.csv: has no rows"),
    ],
)
def test_what_cannot_be_is_one_line_with_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, text, pictures=DOG)
    assert error.value.exit_code == 2
    assert str(error.value).startswith(str(tmp_path / "runs.csv"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.csv", "--variants nowhere.csv: there is no such file. Name a .csv or .toml file, or a grid"),
        ("seed=1,,2", "seed=1,,2 has an empty value"),
        ("seed=1,1", "seed=1,1 has a value twice"),
        ("seed=1 seed=2", "seed is there twice"),
        ("seed=1 base", "'base' is no setting with its values"),
        ("precision=float32,bfloat16", "precision is the same for all"),
    ],
)
def test_what_is_no_grid_is_one_line(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_variants(source, DOG)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs.toml: is not readable TOML"):
        read(tmp_path, "[[variant]\n", name="runs.toml")
    with pytest.raises(UserError, match=r"runs.toml: variants is no part of it"):
        read(tmp_path, "variants = 1\n", name="runs.toml")
    with pytest.raises(UserError, match="names no pictures, and none were given"):
        read(tmp_path, "seed\n1\n")
    (tmp_path / "latin.csv").write_bytes("pictures\nh\xfcte\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.csv: is not UTF-8 \(byte 10\)"):
        read_variants(tmp_path / "latin.csv", ())
