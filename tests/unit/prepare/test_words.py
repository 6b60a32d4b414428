"""The word for the subject should be rare, and one word."""

import pytest

from limner.errors import UserError
from limner.prepare.words import token_notes

VOCABULARY = {f"common{i}</w>": i for i in range(95)} | {"sks</w>": 96, "oh": 97, "wx</w>": 98, "z": 99}


def pieces(text: str) -> list[str]:
    known = {"sks": ["sks</w>"], "dog": ["common5</w>"], "ohwx": ["oh", "wx</w>"], "zzzz": ["z"] * 4, "…": []}
    return known[text]


def notes(token: str, noun: str | None = "dog") -> list[str]:
    return token_notes(token, noun, pieces=pieces, vocabulary=VOCABULARY)


def test_rare_words_need_no_word():
    assert notes("sks") == notes("ohwx") == []


def test_common_words_and_long_ones_are_pointed_out():
    assert notes("dog", None)[0].startswith("the token 'dog' is a common word of the base (place 5 of 99)")
    assert notes("zzzz")[0] == "the token 'zzzz' is 4 pieces for the base (z z z z): shorter learns faster"


@pytest.mark.parametrize(
    ("token", "message"),
    [("my dog", "must be one word"), ("", "must be one word"), ("dog", "is also in"), ("…", "makes nothing of it")],
)
def test_tokens_that_cannot_work(token, message):
    with pytest.raises(UserError, match=message):
        notes(token)
