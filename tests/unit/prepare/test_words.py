"""The word for the subject should be rare, and one word."""

import shutil
from pathlib import Path

import pytest

from limner.errors import UserError
from limner.families.tokenizer import load_tokenizer
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.words import token_notes, word_notes
from tests.unit.prepare.conftest import picture

VOCABULARY = {f"common{i}</w>": i for i in range(95)} | {"sks</w>": 96, "oh": 97, "wx</w>": 98, "z": 99}


def pieces(text: str) -> list[str]:
    known = {"sks": ["sks</w>"], "dog": ["common5</w>"], "ohwx": ["oh", "wx</w>"], "zzzz": ["z"] * 4, "…": []}
    return known[text]


def notes(token: str, noun: str | None = "dog", *, learned: bool = False) -> list[str]:
    return token_notes(token, noun, pieces=pieces, vocabulary=VOCABULARY, learned=learned)


def test_rare_words_need_no_word():
    assert notes("sks") == notes("ohwx") == []


def test_common_words_and_long_ones_are_pointed_out():
    assert notes("dog", None)[0].startswith("the token 'dog' is a common word of the base (place 5 of 99)")
    assert notes("zzzz")[0] == "the token 'zzzz' is 4 pieces for the base (z z z z): shorter learns faster"


def test_a_learned_word_may_be_long_but_not_known():
    assert notes("zzzz", learned=True) == []
    with pytest.raises(UserError, match="is already a word in the base's vocabulary"):
        notes("sks", learned=True)


@pytest.mark.parametrize(
    ("token", "message"),
    [("my dog", "must be one word"), ("", "must be one word"), ("dog", "is also in"), ("…", "makes nothing of it")],
)
def test_tokens_that_cannot_work(token, message):
    with pytest.raises(UserError, match=message):
        notes(token)


def test_the_tokenizer_of_a_base_is_read_without_its_weights(random_base: Path, tmp_path: Path):
    base = shutil.copytree(random_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    folder, embedded = load_tokenizer(str(base)), load_tokenizer("tiny")
    assert folder is not None
    assert embedded is not None
    assert folder.tokenize("critter") == embedded.tokenize("critter")


def test_no_tokenizer_is_no_error(random_base: Path, tmp_path: Path):
    base = shutil.copytree(random_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.rmtree(base / "tokenizer")
    assert load_tokenizer(str(base)) is None
    assert load_tokenizer("nobody/nothing-of-this-name") is None


def test_every_subject_is_told_about(random_base: Path, tmp_path: Path):
    for number, name in enumerate(("critter dog", "unpronounceables cat", "sks teapot")):
        (tmp_path / name).mkdir()
        picture(number, (64, 64)).save(tmp_path / name / "a.png")
    spec = Pictures(subjects=True)
    notes = word_notes(str(random_base), spec, check_pictures(tmp_path, spec, resolution_px=64), learned=False)
    assert len(notes) == 2
    assert notes[0].startswith("the token 'critter' is a common word of the base (place ")
    assert notes[1].startswith("the token 'unpronounceables' is ")
    assert "pieces for the base" in notes[1]
