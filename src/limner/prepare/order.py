"""The order in which examples are seen: a pure function of (seed, step), so that a resumed run needs no state."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from limner.seeds import seed_of


def uniform(seed: int, *counters: int | str) -> float:
    """Return a number in [0, 1) that depends on the seed and the counters only."""
    return seed_of(seed, *counters) / 2**63


@functools.lru_cache(maxsize=8)
def permutation(n: int, seed: int, *counters: int | str) -> tuple[int, ...]:
    """Return the numbers 0 ... n - 1 in an order that depends on the seed and the counters only."""
    return tuple(sorted(range(n), key=lambda i: seed_of(seed, *counters, i)))


@dataclass(frozen=True)
class Group:
    """Examples that share a place in every epoch: a subject, or a folder with its repeats."""

    members: tuple[int, ...]
    per_epoch: int
    """How many examples of the group an epoch holds; its members take turns."""


class Order:
    """Which examples each step sees.

    Members of a group take turns, in a new order every time round, so that none is seen twice before all were
    seen once. With one bucket the steps cut one endless stream of epochs into batches of exactly `batch`.
    With several buckets a batch holds one bucket, so each epoch stands by itself, and a bucket that does not
    divide gives batches that differ by at most one in size: every example of the epoch is seen exactly once.
    """

    def __init__(self, groups: Sequence[Group], bucket_of: Sequence[int], batch: int) -> None:
        self.groups = tuple(groups)
        self.bucket_of = tuple(bucket_of)
        self.batch = batch
        self.examples_per_epoch = sum(group.per_epoch for group in groups)
        """How many examples an epoch holds, repeats counted."""
        self.has_one_bucket = len(set(bucket_of)) == 1
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self._batches = functools.lru_cache(maxsize=2)(self._make_batches)
        self._length = functools.lru_cache(maxsize=None)(lambda seed, epoch: len(self._batches(seed, epoch)))

    def steps_per_epoch(self, seed: int = 0) -> int:
        """Return how many steps an epoch takes, rounded up; with several buckets, those of the seed's first epoch."""
        if self.has_one_bucket:
            return -(-self.examples_per_epoch // self.batch)
        return self._length(seed, 0)

    @property
    def rows_per_step(self) -> Fraction:
        """Return how many examples a step sees, on average: `batch` where there is one bucket."""
        if self.has_one_bucket:
            return Fraction(self.batch)
        return Fraction(self.examples_per_epoch, self.steps_per_epoch())

    def batch_sizes(self) -> list[dict[int, float]]:
        """Return how many batches of which size the first epoch has, for each bucket."""
        if self.has_one_bucket:
            return [{self.batch: self.examples_per_epoch / self.batch}]
        sizes: list[dict[int, float]] = [{} for _ in range(max(self.bucket_of) + 1)]
        for batch in self._batches(0, 0):
            counts = sizes[self.bucket_of[batch[0]]]
            counts[len(batch)] = counts.get(len(batch), 0.0) + 1
        return sizes

    def rows(self, step: int, seed: int) -> tuple[list[int], int]:
        """Return the examples of a step, and how many rows all steps before it had."""
        if self.has_one_bucket:
            start = step * self.batch
            places = (divmod(i, self.examples_per_epoch) for i in range(start, start + self.batch))
            return [self._epoch(seed, epoch)[place] for epoch, place in places], start
        epoch, first = self._epoch_of(step, seed)
        batches = self._batches(seed, epoch)
        before = epoch * self.examples_per_epoch + sum(len(b) for b in batches[: step - first])
        return list(batches[step - first]), before

    def _epoch_of(self, step: int, seed: int) -> tuple[int, int]:
        """Return the epoch of a step and the first step of that epoch."""
        if all(group.per_epoch % len(group.members) == 0 for group in self.groups):
            epoch = step // self._length(seed, 0)
            return epoch, epoch * self._length(seed, 0)
        epoch, first = 0, 0
        while step >= first + self._length(seed, epoch):
            first += self._length(seed, epoch)
            epoch += 1
        return epoch, first

    def _make_epoch(self, seed: int, epoch: int) -> list[int]:
        """Return the examples of an epoch in the order in which they are seen."""
        entries: list[int] = []
        for number, group in enumerate(self.groups):
            for place in range(epoch * group.per_epoch, (epoch + 1) * group.per_epoch):
                turn, index = divmod(place, len(group.members))
                entries.append(group.members[permutation(len(group.members), seed, "turn", number, turn)[index]])
        if len(self.groups) == 1:
            return entries
        return [entries[i] for i in permutation(len(entries), seed, "epoch", epoch)]

    def _make_batches(self, seed: int, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch, each of one bucket."""
        buckets: dict[int, list[int]] = {}
        for index in self._epoch(seed, epoch):
            buckets.setdefault(self.bucket_of[index], []).append(index)
        batches: list[list[int]] = []
        for _, entries in sorted(buckets.items()):
            number = -(-len(entries) // self.batch)
            edges = [len(entries) * i // number for i in range(number + 1)]
            batches += [entries[a:b] for a, b in pairwise(edges)]
        return [batches[i] for i in permutation(len(batches), seed, "batches", epoch)]
