"""What a run says about its pictures: before any weight is read, when it is resumed, when they are held out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from limner import run
from limner.errors import UserError
from limner.families.source import ASSETS
from limner.rundir import read_json
from tests.pipeline.lines import Lines

CRITTER = ASSETS / "demo" / "critter"


def test_the_token_is_checked_before_any_weight_is_read(random_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(random_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    lines = Lines()
    settings = {"base": str(base), "pictures.token": "critter", "pictures.class_noun": "dog", "steps": 4}
    run.check(CRITTER, settings=settings, watch=lines)
    assert any(line.startswith("the token 'critter' is a common word of the base") for line in lines.said)
    with pytest.raises(UserError, match="is also in pictures.class_noun"):
        run.check(CRITTER, settings={**settings, "pictures.class_noun": "critter"})


def test_a_resume_names_the_files_that_changed(random_base: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(CRITTER, tmp_path / "pictures")
    first, second, *_ = sorted(pictures.glob("*.*"))
    settings = {
        "base": str(random_base), "pictures.class_noun": "critter", "pictures.caption": "{token} {class_noun}",
        "steps": 2, "checkpoint.every_steps": 1,
    }  # fmt: skip
    done = run.train(pictures, settings=settings, run=tmp_path / "run")
    shutil.copy(second, pictures / "new.png")
    first.unlink()
    with pytest.raises(UserError) as caught:
        run.resume(done.path, settings={"steps": 4})
    assert f"the data changed since the checkpoint (1 file added: new.png; 1 file removed: {first.name})" in str(
        caught.value
    )


def test_held_out_pictures_are_kept_in_the_run(random_base: Path, tmp_path: Path) -> None:
    train, held_out = tmp_path / "train", tmp_path / "held-out"
    pictures = sorted(CRITTER.glob("*.png"))
    for folder, some in ((train, pictures[:3]), (held_out, pictures[3:])):
        folder.mkdir()
        for file in some:
            shutil.copy(file, folder)
    settings = {
        "base": str(random_base), "pictures.class_noun": "critter", "pictures.caption": "{token} {class_noun}",
        "steps": 1, "evaluation.pictures": str(held_out),
    }  # fmt: skip
    done = run.train(train, settings=settings, run=tmp_path / "run")
    kept = read_json(done.held_out / "manifest.json")["pictures"]
    assert [row["name"] for row in kept] == [file.name for file in pictures[3:]]
    shutil.copy(pictures[0], held_out)
    with pytest.raises(UserError, match=f"{pictures[0].name}  is the same file as {pictures[0].name} of training"):
        run.train(train, settings=settings, run=tmp_path / "leaky")
    assert not (tmp_path / "leaky").exists()
