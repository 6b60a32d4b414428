"""Find pictures that are nearly the same, by their 64-bit likeness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MOST_BITS = 3
"""Likenesses that differ in at most this many bits belong to nearly the same picture."""


def similar_pairs(likeness: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of names whose likenesses differ in at most MOST_BITS bits, in the order given.

    Two such likenesses agree in at least one of four groups of 16 bits, so only those are compared.
    """
    names = [name for name, value in likeness.items() if value]
    place = {name: i for i, name in enumerate(names)}
    pairs: set[tuple[int, int]] = set()
    for shift in (0, 16, 32, 48):
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(likeness[name] >> shift & 0xFFFF, []).append(name)
        for group in groups.values():
            for i, j in _close(group, likeness):
                pairs.add((place[i], place[j]))
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def shared_pictures(train: Mapping[str, int], held_out: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of a training picture and a held-out one that are nearly the same picture."""
    both = {f"train {name}": value for name, value in train.items()}
    both |= {f"held-out {name}": value for name, value in held_out.items()}
    found = similar_pairs(both)
    return [
        (a.removeprefix("train "), b.removeprefix("held-out "))
        for a, b in found
        if a.startswith("train ") and b.startswith("held-out ")
    ]


def _close(group: list[str], likeness: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for i, first in enumerate(group):
        for second in group[i + 1 :]:
            if (likeness[first] ^ likeness[second]).bit_count() <= MOST_BITS:
                yield first, second
