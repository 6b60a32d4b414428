"""What a step leaves out: it goes back no further than to the first layer that learns, and waits for nothing."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.families.family import Family
from limner.objectives import Denoising
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.train.passes import backward
from limner.train.trace import Trace
from tests.pipeline.drawn import Drawn
from tests.unit.train.tape import Unread

LATE = ("*up_blocks.1.*.to_q", "*up_blocks.1.*.to_k")


class Asked(TorchDispatchMode):
    """Notes which gradients are asked of convolutions and normalisations: of inputs, of weights, of biases."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Sequence[bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__.endswith("_backward") and isinstance(args[-1], list):
            self.masks.append(args[-1])
        return func(*args, **(kwargs or {}))


def attached(family: Family, adapter: LoRA | Full) -> Training:
    made = adapter.attach(family, [SlotSettings(seed=0)])
    slot = Slot("s", Drawn(0), seed=0, steps=9, learning_rate=1e-3)
    return Training(family, made, [slot], objective=Denoising(), optimizer=AdamW(), teacher=True)


def passed(run: Training) -> None:
    """Take the passes of a step, as they are on the device."""
    rows = run.passes.lay([run.slots[0].source.batch(0, seed=0)])
    draws, factors = [run.passes.draws.seeded(0, 0, "test")], torch.ones(1)
    with Unread():
        backward(rows.per_slot(run.passes.losses(rows, draws)[0]), factors)


@pytest.mark.parametrize(
    "adapter", [LoRA(rank=2), LoRA(rank=2, targets="all"), Full()], ids=["LoRA", "on all layers", "full"]
)
def test_no_pass_looks_at_a_value(family: Family, adapter: LoRA | Full) -> None:
    """With half of the rows taught by the base, too."""
    run = attached(family, adapter)
    passed(run)
    assert float(run.updates[0].clip()) > 0
    run.adapter.detach()


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["LoRA", "full"])
def test_a_step_leaves_no_tensor_to_the_garbage_collector(family: Family, adapter: LoRA | Full) -> None:
    """Which the command line lets look but rarely."""
    run = attached(family, adapter)
    passed(run)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        passed(run)
        gc.collect()
        left = [one for one in gc.garbage if isinstance(one, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
    run.adapter.detach()


def test_frozen_weights_get_no_gradient(family: Family) -> None:
    run = attached(family, LoRA(rank=2, targets="attention"))
    with Asked() as asked:
        passed(run)
    assert asked.masks
    assert not any(any(mask[1:]) for mask in asked.masks), "only inputs are asked for"
    assert all(weight.grad is None for weight in family.unet.parameters())
    run.adapter.detach()


def test_the_way_back_ends_at_the_first_layer_that_learns(family: Family) -> None:
    """What comes before it keeps nothing and is not differentiated: fewer kernels, operations and kept values."""
    needed: dict[str, bool] = {}
    watched = {"down": family.unet.down_blocks[-1], "mid": family.unet.mid_block, "up": family.unet.up_blocks[1]}
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _module, _inputs, out, name=name: needed.update(
                {name: (out[0] if isinstance(out, tuple) else out).requires_grad}
            )
        )
    costs: dict[str, tuple[int, int, int]] = {}
    for name, targets in (("late", LATE), ("everywhere", "attention")):
        run = attached(family, LoRA(rank=2, targets=targets))
        kept: list[int] = []
        with (
            Trace() as trace,
            trace.measuring() as cost,
            torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t),
        ):
            passed(run)
        costs[name] = sum(kept), sum(cost.flops.values()), cost.kernels
        assert needed == {"down": name == "everywhere", "mid": name == "everywhere", "up": True}
        run.adapter.detach()
    assert all(late < everywhere for late, everywhere in zip(costs["late"], costs["everywhere"], strict=True))
    assert costs["late"][0] < 0.6 * costs["everywhere"][0]
