"""Several trainings that take their steps together: the slots of one stacked adapter, in one batch on one base."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from limner.adapters.adapter import Stackable
from limner.errors import UserError
from limner.train.loop import Training
from limner.train.passes import Turn
from limner.train.slots import Step


class Company:
    """Trainings of one slot each, on one base: between two steps each of them is what it would be alone.

    They may differ in rank, rates, optimizer, length and pictures, and in how far they have come; layers, objective and
    `accumulate` are the same for all. Their adapters are off the base but within `acting`. Whoever comes or goes makes
    a new company of those who are there, after `part`.
    """

    def __init__(self, members: Sequence[Training]) -> None:
        self.members = tuple(members)
        first, *others = (_stackable(member) for member in members)
        self._stack = first.stacked(others) if others else first
        self._passes = members[0].passes.over(self._stack)
        self._rebind()

    def step(self) -> list[Step | UserError | None]:
        """Train every member by one update; return what each did, its seconds an equal share of all.

        What goes wrong with a member stands in the place of its step: its numbers broke, or its pictures are gone. Of
        the latter the others do not move (None): they do when it has left.
        """
        started = time.perf_counter()
        turns = [_turn_of(member) for member in self.members]
        if any(isinstance(turn, UserError) for turn in turns):
            return [turn if isinstance(turn, UserError) else None for turn in turns]
        self._stack.zero_grad()
        with self._stack.attached():
            passed = self._passes.run([turn for turn in turns if isinstance(turn, Turn)])
        found: list[Step | UserError | None] = []
        for member, own in zip(self.members, passed, strict=True):
            try:
                found.append(member.take([own], started))
            except UserError as error:
                found.append(error)
        return found

    @contextmanager
    def acting(self, member: Training) -> Iterator[None]:
        """Within this block the base is as this member has taught it, and no other."""
        with _stackable(member).attached():
            yield

    def part(self) -> None:
        """Have every member go on in memory of its own."""
        for member in self.members if len(self.members) > 1 else ():
            _stackable(member).leave()
        self._rebind()

    def _rebind(self) -> None:
        for member in self.members:
            member.rebind()


def _turn_of(member: Training) -> Turn | UserError:
    """Return what a member brings to the step, or why it cannot."""
    try:
        (turn,) = member.turns()
    except UserError as error:
        return error
    return turn


def _stackable(member: Training) -> Stackable:
    assert isinstance(member.adapter, Stackable), f"{type(member.adapter).__name__} does not stack"
    return member.adapter
