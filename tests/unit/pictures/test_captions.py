"""Captions keep their words, whatever their encoding, and tags change places only."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import UserError
from limner.pictures.captions import tags_shuffled
from limner.pictures.spec import Pictures
from limner.pictures.text import to_text

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))


@given(TEXTS)
def test_every_known_encoding_gives_the_text_back(text):
    assert to_text(codecs.BOM_UTF8 + text.encode(), "a") == text
    for encoding in ("utf-16", "utf-32"):
        assert to_text(text.encode(encoding), "a") == text
    assert to_text(codecs.BOM_UTF16_BE + text.encode("utf-16-be"), "a") == text
    if not text.startswith("\ufeff"):
        assert to_text(text.encode(), "a") == text


@given(st.binary(max_size=200))
def test_bytes_are_text_or_a_user_error(data):
    try:
        text = to_text(data, "captions/7.txt")
    except UserError as error:
        text = error.message.removeprefix("captions/7.txt: is not")
    assert "\0" not in text
    assert not text.startswith("captions/7.txt")


def test_the_byte_is_named():
    with pytest.raises(UserError, match=r"captions/7.txt: is not UTF-8 \(byte 0x83 at 6\). Save it as UTF-8."):
        to_text(b"abcdef\x83", "captions/7.txt")


@given(
    st.lists(st.text("abcde fgh", min_size=1, max_size=8).map(str.strip).filter(bool), min_size=1, max_size=8),
    st.integers(0, 20),
    st.integers(0, 4),
)
def test_shuffling_moves_tags_and_keeps_the_first(tags, orders, keep):
    caption = ", ".join(tags)
    found = tags_shuffled(caption, orders, keep)
    assert found[0] == caption
    assert 1 <= len(found) <= max(1, orders)
    assert len(set(found)) == len(found)
    for one in found:
        parts = one.split(", ")
        assert sorted(parts) == sorted(tags)
        assert parts[:keep] == tags[:keep]
    assert tags_shuffled(caption, orders, keep) == found


def test_templates():
    assert Pictures(class_noun="tea pot").fill("a photo of {token} {class_noun}") == "a photo of sks tea pot"
    assert Pictures().fill("a photo of {token} {class_noun}, {other}") == "a photo of sks , {other}"


def test_a_colour_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'glass' is not a colour"):
        Pictures(alpha="glass")
    assert Pictures(alpha="mask").background == "white"
    assert Pictures(alpha="#123456").background == "#123456"
