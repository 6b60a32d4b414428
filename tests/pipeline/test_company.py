"""Trainings that take their steps together end where each ends alone, whoever comes and goes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.adapters.adapter import SlotSettings, Stackable
from limner.adapters.lora import LoRA
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.errors import Guarded, UserError
from limner.families.family import Family
from limner.objectives import Denoising
from limner.seeds import generator
from limner.train.average import Ema
from limner.train.company import Company
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.train.slots import Step
from limner.types import Batch, Conditioning
from tests.fresh import fresh

WORDS = ("<ann>", "<bob>", "<cid>", "<dee>", "<eve>")
RANKS = (4, 2, 3, 1, 4)


class Rows:
    """Random examples of one subject of a family: so many pictures, now and then of another shape."""

    def __init__(self, family: Family, number: int, pictures: int) -> None:
        self.number, self.pictures = number, pictures
        self.missing, self.poison = range(0), range(0)
        with torch.no_grad():
            self.told = family.encode_text(["a photo of a critter"] * 2)

    def batch(self, step: int, *, seed: int) -> Batch:
        if step in self.missing:
            raise UserError(f"picture {step} is gone.", "Bring it back.")
        draws = generator("rows", self.number, step % self.pictures, seed)
        side = 12 if (step + self.number) % 3 == 0 else 16
        moments = torch.stack([torch.randn(2, 4, side, 16, generator=draws), torch.full((2, 4, side, 16), 0.1)], dim=1)
        if step in self.poison:
            moments[0] = float("nan")
        caption = f"a photo of {WORDS[self.number]}"
        told = self.told
        ids = None if told.time_ids is None else told.time_ids + self.number
        return Batch(
            ids=(f"{self.number}-0.png", f"{self.number}-1.png"),
            moments=moments,
            conditioning=Conditioning(told.hidden, told.pooled, ids),
            weight=torch.tensor([1.0, 0.7]),
            is_prior=(False, True),
            captions=(caption, caption),
        )


LORA = LoRA(targets=("*.attn1.to_q", "*.attn2.to_k", "*.conv1", "*.ff.net.2"))
SPECS: dict[str, Any] = {
    "lora": LORA,
    "lora-text": LORA.model_copy(update={"text_encoder": True, "targets": ("*.attn2.to_v",)}),
    "textual_inversion": TextualInversion(vectors=2),
    "pivotal": Pivotal(lora=LORA, words=TextualInversion(vectors=2)),
}


@pytest.fixture(params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, random_sd15: Path, random_xl: Path) -> Family:
    return fresh({"sd15": random_sd15, "sdxl": random_xl}[request.param])


def member(family: Family, spec: Any, i: int, *, steps: int = 8) -> Training:
    """Return a training of its own pictures, seed, rank, rate, optimizer and length, off the base."""
    learns = SlotSettings(seed=10 + i, rank=RANKS[i], words={WORDS[i]: "critter"})
    slot = Slot(WORDS[i], Rows(family, i, pictures=i + 1), seed=10 + i, steps=steps - i, learning_rate=2e-4 * (i + 1))
    optimizer = AdamW(schedule="cosine", warmup_steps=i % 2, max_grad_norm=0.05)
    made = Training(family, spec.attach(family, [learns]), [slot], objective=Denoising(noise_offset=0.05),
                    optimizer=optimizer, ema=Ema(decay=0.9 * (i % 2)))  # fmt: skip
    made.adapter.detach()
    return made


def end_of(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in training.state()[0].items() if "weight|" in name or "ema|" in name}


def alone(family: Family, spec: Any, i: int, **more: Any) -> dict[str, Tensor]:
    training = member(family, spec, i, **more)
    assert isinstance(training.adapter, Stackable)
    with training.adapter.attached():
        for _ in training:
            pass
    return end_of(training)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return how far two ends are apart, relative to how large they are."""
    assert a.keys() == b.keys()
    size = sum(float(t.double().square().sum()) for t in a.values())
    return (sum(float((t - b[n]).double().square().sum()) for n, t in a.items()) / size) ** 0.5


def finish(members: list[Training], see: Callable[[Training, Any], None] = lambda *_: None) -> None:
    """Have members train together; each leaves when it has finished, or when something goes wrong with it."""
    while members:
        company = Company(members)
        while all(m.index < m.steps for m in members):
            found = company.step()
            for one, step in zip(company.members, found, strict=True):
                see(one, step)
            if any(isinstance(step, UserError) for step in found):
                members = [m for m, step in zip(members, found, strict=True) if not isinstance(step, UserError)]
                break
        company.part()
        members = [m for m in members if m.index < m.steps]


@pytest.fixture(scope="module")
def ends() -> dict[tuple[str, str, int], dict[str, Tensor]]:
    """Return where trainings ended alone, by base, method and number."""
    return {}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_ends_where_it_ends_alone(base: Family, name: str, n: int, ends: dict[Any, dict[str, Tensor]]) -> None:
    """Unequal ranks, rates, steps and numbers of pictures; shapes that differ from step to step; averages."""
    spec, steps = SPECS[name], 6
    members = [member(base, spec, i, steps=steps) for i in range(n)]
    untouched = base.encode_text(["a photo of a critter"]).hidden
    finish(list(members))
    assert torch.equal(base.encode_text(["a photo of a critter"]).hidden, untouched)
    assert base.placeholders == {}
    for i, one in enumerate(members):
        assert one.index == steps - i
        if (base.kind, name, i) not in ends:
            ends[base.kind, name, i] = alone(base, spec, i, steps=steps)
        difference = apart(ends[base.kind, name, i], end_of(one))
        assert difference < 1e-5, f"{i} of {n}: {difference:g}"
        assert n > 1 or difference == 0, "one alone is bit for bit what it always is"


def test_one_that_breaks_and_one_without_pictures_leave_the_others_alone(family: Family) -> None:
    members = [member(family, LORA, i) for i in range(3)]
    broken, gone = (m.slots[0].source for m in members[1:])
    assert isinstance(broken, Rows)
    assert isinstance(gone, Rows)
    broken.poison, gone.missing = range(2, 99), range(1, 2)
    wrong: dict[int, str] = {}

    def see(one: Training, step: Any) -> None:
        if isinstance(step, UserError):
            wrong[members.index(one)] = f"{type(step).__name__}: {step}"
        elif step is not None and members.index(one) == 1:
            assert step.slots[0].skipped == (step.index > 2)

    finish(list(members), see)
    assert wrong.keys() == {1, 2}
    assert wrong[1].startswith(f"{Guarded.__name__}: Stopped at step 7: loss or gradient was not finite 5 times")
    assert wrong[2] == "UserError: picture 1 is gone. Bring it back."
    assert [m.index for m in members] == [8, 7, 1]
    assert apart(alone(family, LORA, 0), end_of(members[0])) < 1e-5


def test_who_comes_later_and_who_goes_early_end_as_alone(family: Family) -> None:
    """A queue: two at a time, the next sits down between two steps; one goes on alone after a while."""
    waiting = [member(family, LORA, i) for i in range(4)]
    members, sitting = list(waiting), [waiting.pop(0), waiting.pop(0)]
    while sitting:
        company = Company(sitting)
        while all(m.index < m.steps for m in sitting):
            assert all(isinstance(step, Step) for step in company.step())
        company.part()
        sitting = [m for m in sitting if m.index < m.steps]
        while waiting and len(sitting) < 2:
            sitting.append(waiting.pop(0))
    for i, one in enumerate(members):
        assert apart(alone(family, LORA, i), end_of(one)) < 1e-5


def test_a_probe_leaves_no_trace(family: Family) -> None:
    members = [member(family, SPECS["pivotal"], i) for i in range(2)]
    company = Company(members)
    company.step()
    before = [end_of(m) for m in members]
    company.probe([5, 4])
    assert [m.index for m in members] == [1, 1]
    assert [apart(end_of(m), then) for m, then in zip(members, before, strict=True)] == [0, 0]
    unprobed = [member(family, SPECS["pivotal"], i) for i in range(2)]
    other = Company(unprobed)
    for _ in range(2):
        other.step()
    company.step()
    assert [apart(end_of(m), end_of(o)) for m, o in zip(members, unprobed, strict=True)] == [0, 0]
