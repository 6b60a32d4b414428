"""Trainings of a very small base that are taken step by step, eagerly and recorded, and how far apart they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.families.family import Family
from limner.objectives import Denoising
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.train.recorded import Recorder
from limner.types import Batch
from tests.pipeline.drawn import Drawn

OPTIMIZER = AdamW(schedule="cosine", warmup_steps=2, max_grad_norm=0.05)


class Buckets:
    """Wide and tall pictures by turns, as buckets give them."""

    def __init__(self, subject: int) -> None:
        self._drawn = Drawn(subject)

    def batch(self, step: int, *, seed: int) -> Batch:
        batch = self._drawn.batch(step, seed=seed)
        return replace(batch, moments=batch.moments[..., :8]) if step % 2 else batch


class Heavy(Drawn):
    """Rows whose gradients are too large for the largest loss scale."""

    def batch(self, step: int, *, seed: int) -> Batch:
        batch = super().batch(step, seed=seed)
        return replace(batch, weight=1e6 * batch.weight)


def training(
    family: Family,
    ranks: list[int],
    *,
    recorder: Callable[[], Recorder] | None = None,
    sources: list[Any] | None = None,
    steps: int = 5,
    **more: Any,
) -> Training:
    slots = [
        Slot(f"s{i}", sources[i] if sources else Drawn(i), seed=100 + i, steps=steps - i, learning_rate=2e-4 * (i + 1))
        for i in range(len(ranks))
    ]
    settings = [SlotSettings(seed=slot.seed, rank=rank) for slot, rank in zip(slots, ranks, strict=True)]
    adapter = LoRA(targets="all").attach(family, settings)
    made = Training(family, adapter, slots, objective=Denoising(noise_offset=0.05), optimizer=OPTIMIZER, **more)
    if recorder:
        made.record(recorder)
    return made


def weights(run: Training) -> list[dict[str, Tensor]]:
    return [run.adapter.state_dict(i) for i in range(len(run.slots))]


def told(run: Training) -> list[tuple[Any, ...]]:
    """Take all steps; return what is told of each slot that no rounding changes."""
    found = [(s.slot, s.skipped, s.pictures, s.timesteps, s.learning_rates) for step in run for s in step.slots]
    run.adapter.detach()
    return found


def apart(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> float:
    """Return how far two sets of weights are from one another, relative to the length of the second."""
    error = sum(float((t - b[i][name]).square().sum()) for i, one in enumerate(a) for name, t in one.items()) ** 0.5
    return error / sum(float(t.square().sum()) for one in b for t in one.values()) ** 0.5
