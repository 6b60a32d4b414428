"""Find pictures that are nearly the same, by their 64-bit likeness."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MOST_BITS = 3
"""Likenesses that differ in at most this many bits belong to nearly the same picture."""


def similar_pairs(likeness: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of names whose likenesses differ in at most MOST_BITS bits, in the order given.

    Two such likenesses agree in at least one of four groups of 16 bits, so only those are compared.
    """
    names = [name for name, value in likeness.items() if value]
    values = np.array([likeness[name] for name in names], dtype=np.uint64)
    pairs: set[tuple[int, int]] = set()
    for shift in (0, 16, 32, 48):
        part = (values >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        edges = np.flatnonzero(np.diff(part[order])) + 1
        for group in np.split(order, edges):
            for place, i in enumerate(group[:-1]):
                others = group[place + 1 :]
                close = others[np.bitwise_count(values[others] ^ values[i]) <= MOST_BITS]
                pairs.update((min(int(i), int(j)), max(int(i), int(j))) for j in close)
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
