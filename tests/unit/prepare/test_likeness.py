"""Nearly the same pictures are found, different ones are not, in any number."""

import random

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from limner.prepare.likeness import MOST_BITS, shared_pictures, similar_pairs
from limner.prepare.look import likeness
from tests.unit.prepare.conftest import picture

HASHES = st.integers(1, 2**64 - 1)


@given(st.lists(HASHES, max_size=12), st.lists(st.integers(0, 63), max_size=6))
def test_pairs_are_exactly_those_within_the_bits(values, flips):
    values = [*values, *(values[0] ^ (1 << bit) for bit in flips[:3])] if values else values
    if values and len(set(flips)) > 1:
        many = values[0]
        for bit in set(flips):
            many ^= 1 << bit
        values.append(many)
    named = {f"{i}": value for i, value in enumerate(values) if value}
    names = list(named)
    brute = [
        (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if (named[a] ^ named[b]).bit_count() <= MOST_BITS
    ]
    assert similar_pairs(named) == brute


def test_pictures_of_one_colour_resemble_nothing():
    assert likeness(Image.new("RGB", (64, 64), "red")) == 0
    assert similar_pairs({"a": 0, "b": 0}) == []


def test_scaled_and_compressed_again_is_the_same_and_others_are_not():
    images = {f"{seed}": picture(seed, (96, 96)) for seed in range(30)}
    images |= {f"{seed} small": image.resize((64, 64)) for seed, image in list(images.items())}
    images |= {"0 mirrored": ImageOps.mirror(images["0"])}
    pairs = similar_pairs({name: likeness(image) for name, image in images.items()})
    twins = {(f"{seed}", f"{seed} small") for seed in range(30)}
    assert set(pairs) <= twins
    assert len(pairs) >= 28


def test_leaks_between_training_and_held_out_pictures():
    train = {"a": likeness(picture(1, (64, 64))), "b": likeness(picture(2, (64, 64)))}
    held_out = {"x": likeness(picture(2, (80, 80))), "y": likeness(picture(3, (64, 64)))}
    assert shared_pictures(train, held_out) == [("b", "x")]


def test_many_are_compared_in_a_moment():
    draws = random.Random(0)
    many = {f"{i}": draws.getrandbits(64) | 1 for i in range(50_000)}
    many["twin"] = many["7"] ^ 2
    assert ("7", "twin") in similar_pairs(many)
