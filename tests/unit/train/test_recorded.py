"""Recorded steps: what a CUDA graph would do is done on the CPU, and gives what eager steps give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.errors import UserError
from limner.families.family import Family
from limner.train.average import Ema
from limner.train.checkpoint import load_checkpoint, save_checkpoint
from limner.train.company import Company
from limner.train.loop import Training
from limner.train.loss_scale import LossScale
from limner.train.recorded import Recorder
from tests.pipeline.drawn import Drawn
from tests.unit.train.runs import Buckets, Heavy, apart, told, training, weights
from tests.unit.train.tape import Tape, Unread


@pytest.mark.parametrize("code", [
    lambda t: t.item(), lambda t: bool(t), lambda t: float(t), lambda t: t.tolist(), lambda t: t.cpu(),
    lambda t: t.nonzero(), lambda t: t[t > 0], lambda t: torch.tensor([1.0]), lambda t: torch.equal(t, t),
    lambda t: t.new_tensor([1.0]), lambda t: t.numpy(),
])  # fmt: skip
def test_the_search_for_reads_finds(code: Callable[[Tensor], object]) -> None:
    with Unread():
        torch.ones(1).add_(1).view(-1)
    with Unread(), pytest.raises(AssertionError, match="the host"):
        code(torch.ones(1))


CASES: dict[str, dict[str, Any]] = {
    "one slot": {"ranks": [4]},
    "three slots, of several ranks and lengths": {"ranks": [4, 2, 3]},
    "two passes, the base as teacher, an average": {
        "ranks": [2, 2], "accumulate": 2, "teacher": True, "ema": Ema(decay=0.9),
    },
}  # fmt: skip


def kept(tapes: list[Tape]) -> Tape:
    """Return a new tape, which is among `tapes` too."""
    tapes.append(Tape())
    return tapes[-1]


@pytest.mark.parametrize("case", CASES)
def test_played_again_a_recording_gives_what_eager_steps_give(family: Family, case: str) -> None:
    """Over all steps, other pictures, draws, rates and lengths in each: nothing of the first one is baked in."""
    eager = training(family, **CASES[case])
    expected = told(eager)
    tapes: list[Tape] = []
    recorded = training(family, recorder=lambda: kept(tapes), **CASES[case])
    assert told(recorded) == expected
    assert [tape.plays for tape in tapes] == [6], "one recording, played once more to be checked"
    states = [[update.state()[0] for update in run.updates] for run in (recorded, eager)]
    assert apart(*states) < 1e-5, "weights, their average, and what the optimizers hold"


def test_each_bucket_has_its_recording_and_a_mixed_step_is_eager(family: Family) -> None:
    eager = training(family, [2], sources=[Buckets(0)])
    expected = told(eager)
    tapes: list[Tape] = []
    recorded = training(family, [2], sources=[Buckets(0)], recorder=lambda: kept(tapes))
    assert told(recorded) == expected
    assert [tape.plays for tape in tapes] == [4, 3]
    assert apart(weights(recorded), weights(eager)) < 1e-5
    eager = training(family, [2, 2], sources=[Buckets(0), Drawn(1)])
    expected = told(eager)
    recorded = training(family, [2, 2], sources=[Buckets(0), Drawn(1)], recorder=lambda: kept(tapes))
    assert told(recorded) == expected
    assert [tape.plays for tape in tapes[2:]] == [4], "three of five steps; in the others the shapes differ"
    assert apart(weights(recorded), weights(eager)) < 1e-5


def test_a_bad_slot_leaves_its_neighbour_alone(family: Family) -> None:
    """A recorded step with a loss that is not finite changes nothing; the eager one that follows keeps it out."""

    def sources() -> list[Any]:
        bad = Drawn(1)
        bad.poison = range(1, 3)
        return [Drawn(0), bad]

    eager = training(family, [2, 2], sources=sources(), steps=7)
    expected = told(eager)
    assert [skipped for slot, skipped, *_ in expected if slot == "s1"] == [False, True, True, False, False, False]
    recorded = training(family, [2, 2], sources=sources(), steps=7, recorder=Tape)
    assert told(recorded) == expected
    assert apart(weights(recorded), weights(eager)) < 1e-5


def test_a_loss_scale_is_undone_and_overflow_makes_it_smaller(family: Family) -> None:
    def run(recorder: Callable[[], Recorder] | None) -> tuple[float, Training]:
        made = training(family, [2], sources=[Heavy(0)], recorder=recorder)
        scale = made.updates[0].scale = LossScale(2.0**127, limit=2.0**127)
        made.step()
        after, scale.factor = scale.factor, 2.0**10
        made.step()
        made.adapter.detach()
        return after, made

    (expected, eager), (found, recorded) = run(None), run(Tape)
    assert found == expected < 2.0**127, "it overflowed"
    assert apart(weights(recorded), weights(eager)) < 1e-5


def test_resumed_is_unbroken_bit_for_bit_and_either_way_goes_on_from_the_other(family: Family, tmp_path: Path) -> None:
    unbroken = training(family, [3], recorder=Tape)
    for _ in range(3):
        unbroken.step()
    checkpoint = save_checkpoint(unbroken, tmp_path, keep=1)
    told(unbroken)
    ends: dict[str, list[dict[str, Tensor]]] = {}
    for name, recorder in (("recorded", Tape), ("eager", None)):
        resumed = training(family, [3], recorder=recorder)
        resumed.step()  # what it holds is to be forgotten
        resumed.forget()
        load_checkpoint(resumed, checkpoint)
        assert resumed.index == 3
        told(resumed)
        ends[name] = weights(resumed)
    assert apart(ends["recorded"], weights(unbroken)) == 0
    assert 0 < apart(ends["eager"], weights(unbroken)) < 1e-5


def test_members_of_a_company_come_and_go(family: Family) -> None:
    """Two train together, one goes on alone: as eagerly, in recordings of their own."""

    def finish(recorder: Callable[[], Recorder] | None) -> list[Training]:
        members = [training(family, [rank], sources=[Drawn(rank)]) for rank in (4, 2)]
        for member in members:
            member.adapter.detach()
            member.recorder = recorder
        together = Company(members)
        together.probe([0, 0])
        for _ in range(3):
            together.step()
        together.part()
        alone = Company(members[:1])
        for _ in range(2):
            alone.step()
        alone.part()
        return members

    eager, recorded = finish(None), finish(Tape)
    for one, other in zip(recorded, eager, strict=True):
        assert one.index == other.index
        assert apart(weights(one), weights(other)) < 1e-5
        assert apart([one.updates[0].state()[0]], [other.updates[0].state()[0]]) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "what"), [("_fused_adamw_", "weights"), ("zero_", "loss and gradient"), ("randn", "loss and gradient")]
)
def test_a_recording_that_is_not_the_eager_step_is_refused(family: Family, kernel: str, what: str) -> None:
    """Here it forgets a kernel."""

    class Forgetful(Tape):
        def play(self) -> None:
            self.calls = [call for call in self.calls if call[0].overloadpacket.__name__ != kernel]
            super().play()

    run = training(family, [2], recorder=Forgetful)
    with pytest.raises(UserError, match=f"the recorded step is not the eager one: {what} of s0 differ by"):
        run.step()
    run.adapter.detach()
