"""Pictures that likeness is measured against must not have been learned from."""

import shutil

import pytest

from limner.errors import UserError
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.held_out import with_held_out
from tests.unit.prepare.conftest import picture

SPEC = Pictures(class_noun="dog")


def test_others_of_the_subject_are_fine(make_folder):
    train, held_out = make_folder(3, "train", (64, 64)), make_folder(2, "held-out", (64, 64), first=10)
    (held_out / "010.txt").write_text("one has a caption", encoding="utf-8")
    checked = with_held_out(check_pictures(train, SPEC, resolution_px=64), held_out, SPEC)
    assert len(checked.examples) == 3
    assert checked.held_out is not None
    assert [example.name for example in checked.held_out.examples] == ["010.png", "011.png"]
    captions = [example.caption for example in checked.held_out.examples]
    assert captions == ["one has a caption", checked.examples[0].caption]


def test_leaks_are_named_in_pairs(make_folder):
    train, held_out = make_folder(3, "train", (64, 64)), make_folder(2, "held-out", (64, 64), first=10)
    shutil.copy(train / "001.png", held_out / "copy.png")
    picture(0, (64, 64)).resize((128, 128)).save(held_out / "enlarged.jpg", quality=85)
    with pytest.raises(UserError) as caught:
        with_held_out(check_pictures(train, SPEC, resolution_px=64), held_out, SPEC)
    said = str(caught.value)
    assert said.startswith("evaluation.pictures: 2 of 4 held-out pictures were learned from")
    assert "\n  copy.png  is the same file as 001.png of training\n" in said
    assert "\n  enlarged.jpg  is nearly the same picture as 000.png of training\n" in said
