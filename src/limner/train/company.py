"""Several trainings that take their steps together: the slots of one stacked adapter, in one batch on one base."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limner.adapters.adapter import Stackable
from limner.errors import UserError
from limner.train.loop import Training
from limner.train.outcome import Outcome, settle
from limner.train.passes import Turn
from limner.train.recorded import Recorded
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
        self._recorded: Recorded | None = None
        if recorder := members[0].recorder:
            updates = [member.updates[0] for member in members]
            self._recorded = Recorded(self._passes, updates, recorder, members=[first, *others])
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
        there = [turn for turn in turns if isinstance(turn, Turn)]
        found: list[Step | UserError] = []
        for member, turn, outcome in zip(self.members, there, self._outcomes(there), strict=True):
            try:
                found.append(member.take([outcome], [turn], started))
            except UserError as error:
                found.append(error)
        share = (time.perf_counter() - started) / len(self.members)
        return [replace(one, seconds=share) if isinstance(one, Step) else one for one in found]

    def _outcomes(self, turns: Sequence[Turn]) -> list[Outcome]:
        """Take the step in one batch; return what came of each member's."""
        outcomes = self._recorded.step(turns, range(len(turns))) if self._recorded else None
        if outcomes:
            return outcomes
        self._stack.zero_grad()
        with self._stack.attached():
            passed = self._passes.run(turns)
        updates = [member.updates[0] for member in self.members]
        return settle(updates, passed, [member.index + 1 for member in self.members])

    def probe(self, numbers: Sequence[int]) -> None:
        """Take steps of these numbers (from 0), to find out whether there is memory for them; nothing of it stays.

        What is undone is undone as a run is resumed: optimizers are made afresh, and the state is set again.
        """
        draws = torch.get_rng_state()
        before = [_copied(member) for member in self.members]
        try:
            for member, number in zip(self.members, numbers, strict=True):
                member.index = number
            self.step()
        finally:
            for member, (tensors, told) in zip(self.members, before, strict=True):
                member.forget()
                member.restore(tensors, told)
            torch.set_rng_state(draws)

    @staticmethod
    @contextmanager
    def acting(member: Training) -> Iterator[None]:
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


def _copied(member: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a copy of a training's state."""
    tensors, numbers = member.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(numbers)


def _stackable(member: Training) -> Stackable:
    assert isinstance(member.adapter, Stackable), f"{type(member.adapter).__name__} does not stack"
    return member.adapter
