"""Every nasty folder gives what a person would expect of it, or the exact error; none is written to."""

import hashlib
from pathlib import Path

import pytest

from limner.errors import UserError
from limner.pictures.spec import Pictures
from limner.prepare.check import Checked, check_pictures
from tests.corpus import folders

SPEC = Pictures(class_noun="dog")


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "",
            p.lstat().st_mtime_ns,
        )
        for p in folder.rglob("*")
    }


@pytest.fixture
def check(tmp_path):
    """Return a function that makes a folder and checks it; afterwards the folder is as it was."""
    kept = []

    def run(make, spec: Pictures = SPEC, resolution_px: int = 64) -> Checked:
        folder = tmp_path / make.__name__
        make(folder)
        kept.append((folder, state_of(folder)))
        return check_pictures(folder, spec, resolution_px=resolution_px)

    yield run
    for folder, before in kept:
        assert state_of(folder) == before


def names(checked: Checked) -> list[str]:
    return [example.name for example in checked.examples]


def captions(checked: Checked) -> dict[str, str]:
    return {example.name: example.caption for example in checked.examples}


def error(check, make, **settings) -> str:
    with pytest.raises(UserError) as caught:
        check(make, SPEC.model_copy(update=settings))
    return str(caught.value)


def has_note(checked: Checked, part: str) -> bool:
    return any(part in note for note in checked.notes)


def test_the_corpus_is_large_enough():
    assert len(folders.makers()) >= 38


def test_foreign_files_are_ignored_with_a_count(check):
    checked = check(folders.foreign_files)
    assert names(checked) == ["a.png", "b.png"]
    assert checked.notes[:3] == (
        "2 given: 2 used",
        "ignored 2 sub-folders (.ipynb_checkpoints, @eaDir)",
        "ignored 6 other files (.DS_Store, ._a.png, Thumbs.db and 3 more)",
    )


def test_directory_named_like_a_picture(check):
    checked = check(folders.directory_named_like_a_picture)
    assert names(checked) == ["a.png"]
    assert has_note(checked, "ignored 1 sub-folder (x.png)")


def test_empty(check):
    assert error(check, folders.empty).endswith("(it is empty). Put at least one picture into it.")


def test_only_text(check):
    assert "(it has 1 other file: a.txt). Known endings: .avif .bmp" in error(check, folders.only_text)


def test_one_level_too_high(check, tmp_path):
    place = tmp_path / "one_level_too_high"
    assert error(check, folders.one_level_too_high) == (
        f"No pictures in {place} (it has 1 sub-folder: 'photos' with 2 pictures). Did you mean {place / 'photos'}?"
    )


def test_raw_camera_files(check):
    assert has_note(check(folders.raw_camera_files), "1 .cr2 file: raw camera files are not read; export them as JPEG")


def test_upper_case_endings(check):
    assert names(check(folders.upper_case_endings)) == ["A.PNG", "B.Png"]


def test_unusual_names(check):
    assert len(names(check(folders.unusual_names))) == 7


def test_same_stem_is_two_pictures(check):
    checked = check(folders.same_stem)
    assert names(checked) == ["a.png", "a.webp"]
    assert len({example.sha256 for example in checked.examples}) == 2


def test_dangling_link(check):
    assert "b.png  cannot be read (No such file or directory)" in error(check, folders.dangling_link)


def test_link_loop(check):
    assert "b.png  cannot be read (Too many levels of symbolic links)" in error(check, folders.link_loop)


def test_same_file_twice(check):
    assert has_note(check(folders.same_file_twice), "b.png: is the same file as a.png")


def test_nearly_the_same(check):
    checked = check(folders.nearly_the_same)
    assert has_note(checked, "b.jpg: is nearly the same picture as a.png")
    assert not any(note.startswith("c.png") for note in checked.notes)


def test_blurred(check):
    checked = check(folders.blurred)
    assert has_note(checked, "b.png: looks blurred")
    assert not has_note(checked, "a.png: looks blurred")


def test_too_small(check):
    checked = check(folders.too_small)
    assert checked.notes[0] == (
        "2 given: 1 used, 1 excluded\n  z.png  5×5, needs 12.8× upscale > pictures.max_upscale=4"
    )


def test_every_shape_is_seen_once_per_epoch(check):
    checked = check(folders.every_shape)
    order = checked.order(4)
    seen = [i for step in range(order.steps_per_epoch()) for i in order.rows(step, 0)[0]]
    assert sorted(seen) == list(range(24))
    assert sum(bucket.count for bucket in checked.buckets) == 24
    assert all(bucket.lost_share < 0.25 for bucket in checked.buckets)
    assert has_note(checked, "cropped away")


def test_captions_in_txt(check):
    checked = check(folders.captions_in_txt)
    assert captions(checked) == {"a.png": "sks dog on a beach", "b.png": "sks dog asleep"}
    prefixed = check_pictures(
        checked.examples[0].path.parent, SPEC.model_copy(update={"prefix": "{token},"}), resolution_px=64
    )
    assert captions(prefixed)["a.png"] == "sks, sks dog on a beach"


def test_captions_missing(check, tmp_path):
    assert error(check, folders.captions_missing) == (
        "1 of 3 pictures have no caption (first: a.png). Found 1 .caption and 1 .txt: "
        "set pictures.caption_ext, or pictures.missing_captions to template or empty."
    )
    place = tmp_path / "captions_missing"
    spec = SPEC.model_copy(update={"missing_captions": "template"})
    assert captions(check_pictures(place, spec, resolution_px=64))["a.png"] == "a photo of sks dog"
    spec = SPEC.model_copy(update={"missing_captions": "empty", "caption_ext": ".txt"})
    assert captions(check_pictures(place, spec, resolution_px=64)) == {"a.png": "", "b.png": "sks dog", "c.png": ""}
    with pytest.raises(UserError, match="No picture has a .md caption, and 2 have a .txt or .caption file"):
        check_pictures(place, SPEC.model_copy(update={"caption_ext": ".md"}), resolution_px=64)


def test_caption_twice(check):
    assert "has two captions, a.txt and a.caption. Remove one, or set pictures.caption_ext." in error(
        check, folders.caption_twice
    )


def test_caption_with_mark(check):
    assert captions(check(folders.caption_with_mark)) == {"a.png": "sks dog"}


def test_caption_utf16(check):
    assert captions(check(folders.caption_utf16)) == {"a.png": "sks größer", "b.png": "sks 犬"}


def test_caption_cp932_names_every_file(check):
    message = error(check, folders.caption_cp932)
    assert "a.txt: is not UTF-8 (byte 0x83 at 4). Save it as UTF-8." in message
    assert "b.txt: is not UTF-8 (byte 0xe9 at 3)" in message


def test_caption_binary(check):
    assert "a.txt: is not text (it holds zero bytes)" in error(check, folders.caption_binary)


def test_caption_empty(check):
    checked = check(folders.caption_empty)
    assert captions(checked) == {"a.png": "", "b.png": "sks dog"}
    assert has_note(checked, "captions: 1 of them empty (first: a.png)")


def test_caption_orphan(check):
    assert has_note(check(folders.caption_orphan), "captions: 1 belong to no picture (first: z.txt)")


def test_caption_with_full_name(check):
    assert captions(check(folders.caption_with_full_name)) == {"a.png": "the png", "a.webp": "the webp"}


def test_metadata_jsonl(check):
    checked = check(folders.metadata_jsonl)
    assert captions(checked) == {"a.png": "sks dog", "more/b.png": "sks dog b"}
    assert has_note(checked, "metadata.jsonl: 1 row without a picture (first: gone.png)")


def test_metadata_csv(check):
    assert captions(check(folders.metadata_csv)) == {"a.png": "sks dog, sitting", "b.png": "sks dog"}


def test_metadata_other_normal_form(check):
    assert list(captions(check(folders.metadata_other_normal_form)).values()) == ["sks dog"]


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (folders.metadata_broken_line, "metadata.jsonl, line 2: is not JSON"),
        (folders.metadata_outside, "'../../etc/passwd' lies outside the folder"),
        (folders.metadata_two_columns, "no single caption column (columns text and prompt may both be the caption)"),
        (folders.metadata_no_name, "metadata.csv, line 2: has no file_name (found: file, text)"),
        (folders.metadata_against_sidecar, "has one caption in a.txt and another in metadata.jsonl"),
    ],
)
def test_metadata_problems(check, make, part):
    assert part in error(check, make)


def test_kohya(check, tmp_path):
    checked = check(folders.kohya)
    assert captions(checked) == {
        "1_sks cat/c.png": "sks cat asleep",
        "3_sks dog/a.png": "sks dog",
        "3_sks dog/b.png": "sks dog",
    }
    assert [example.repeats for example in checked.examples] == [1, 3, 3]
    assert has_note(checked, "kohya layout: 3_sks dog is 2 pictures × 3 repeats, captioned 'sks dog' by default")
    assert checked.order(1).examples_per_epoch == 7
    itself = check_pictures(tmp_path / "kohya" / "3_sks dog", SPEC, resolution_px=64)
    assert [example.repeats for example in itself.examples] == [1, 1]
    assert has_note(itself, "give its parent folder to have 3 repeats and the caption 'sks dog'")


def test_masks(check):
    checked = check(folders.masks)
    assert names(checked) == ["a.png", "b.png"]
    assert [bool(example.mask_sha256) for example in checked.examples] == [True, False]
    assert has_note(checked, "1 of 2 pictures have a mask: the loss counts only where it is white")


def test_mask_of_another_shape(check):
    assert "its mask a-mask.png is 40×20, the picture 40×40: they must have the same shape" in error(
        check, folders.mask_of_another_shape
    )


def test_mask_black(check):
    assert "its mask a-mask.png is black everywhere: nothing would be learned" in error(check, folders.mask_black)


def test_every_folder_has_a_test():
    own = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in folders.makers() if f"folders.{name}" not in source and name not in own] == []
