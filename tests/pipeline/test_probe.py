"""A step before the first finds out whether there is memory, and leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.families.family import Family
from limner.recipe import load_recipe
from limner.train.loop import Slot, Training
from limner.train.probe import probe
from tests.pipeline.drawn import Drawn

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"ema.decay": 0.9},
    "full, fused": {
        "adapter.kind": "full", "optimizer.kind": "adafactor", "optimizer.fused_backward": True,
        "optimizer.max_grad_norm": 0.0,
    },
    "lora, Prodigy": {"optimizer.kind": "prodigy", "learning_rate": 1.0},
    "lora, schedule-free": {"optimizer.kind": "schedule_free"},
}  # fmt: skip


def training(family: Family, settings: dict[str, Any]) -> Training:
    recipe = load_recipe(None, {"steps": 3, **settings})
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=0, words={recipe.pictures.token: "thing"})])
    slot = Slot("s", Drawn(0), 0, 3, recipe.learning_rate, recipe.adapter.rates(recipe.learning_rate))
    return Training(
        family, adapter, [slot], objective=recipe.objective, optimizer=recipe.optimizer, ema=recipe.ema
    )  # fmt: skip


def held(run: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, numbers = run.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, numbers


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_probe_stays(family: Family, tmp_path: Path, kind: str) -> None:
    alone = training(family, KINDS[kind])
    unprobed = [step.slots for step in alone]
    alone.adapter.detach()
    run = training(family, KINDS[kind])
    before, numbers = held(run)
    draws = torch.get_rng_state()
    probe(run, tmp_path / "probe", step=2)
    after, numbers_after = held(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert numbers == numbers_after
    assert torch.equal(draws, torch.get_rng_state())
    assert not (tmp_path / "probe").exists()
    assert [step.slots for step in run] == unprobed
    run.adapter.detach()


def test_memory_that_runs_out_leaves_no_files(family: Family, tmp_path: Path) -> None:
    run = training(family, {})

    class Full(torch.utils._python_dispatch.TorchDispatchMode):
        """An allocator whose memory is full at the first convolution."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution.default:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return func(*args, **(kwargs or {}))

    with Full(), pytest.raises(torch.OutOfMemoryError):
        probe(run, tmp_path / "probe", step=0)
    assert not (tmp_path / "probe").exists()
    run.adapter.detach()
