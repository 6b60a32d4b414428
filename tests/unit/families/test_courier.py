"""Layers that lie on the host: the same numbers bit for bit, at most two of them at a time where they act."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.families.courier import Brought, Courier, Held
from limner.families.family import Family
from limner.families.load import fingerprints, load
from limner.families.storage import Stored, pack


class Counting(Courier):
    """From the CPU to the CPU; notes how many layers' copies are there at once."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.copies: list[weakref.ref[Tensor]] = []
        self.most = 0

    def _copy(self, held: Held) -> Brought:
        brought = super()._copy(held)
        self.copies = [one for one in self.copies if one() is not None]
        self.copies.append(weakref.ref(brought[0]))
        self.most = max(self.most, len(self.copies))
        return brought


def trained(base: Family, steps: int, checkpointing: bool) -> list[Tensor]:
    """Return the predictions and the gradients of an adapter over a few steps."""
    adapter = LoRA(rank=2, targets="all", text_encoder=True).attach(base, [SlotSettings(seed=0)])
    if checkpointing:
        base.unet.enable_gradient_checkpointing()
    found: list[Tensor] = []
    for step in range(steps):
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(step))
        out = base.predict(x, torch.tensor([5, 700]), base.encode_text(["a", "a robot"], learn=True))
        out.square().mean().backward()
        found += [out.detach(), *(p.grad.clone() for p in adapter.slot_parameters(0).values() if p.grad is not None)]
        for parameter in adapter.slot_parameters(0).values():
            parameter.detach().sub_(0.1 * parameter.grad) if parameter.grad is not None else None
        adapter.zero_grad()
    return found


@pytest.mark.parametrize("form", ["as_computed", "nf4"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_base_on_the_host_learns_the_same_bit_for_bit(
    random_base: Path, monkeypatch: pytest.MonkeyPatch, form: Any, checkpointing: bool
) -> None:
    courier = Counting()
    monkeypatch.setattr("limner.families.load.Courier", lambda device: courier)
    named: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "storage": form}
    away, here = load(str(random_base), **named, offload=True), load(str(random_base), **named)
    assert sum(isinstance(p, Stored) and p.packed.courier is courier for p in away.unet.parameters()) > 50
    assert away.identity == here.identity
    for one, other in zip(trained(away, 3, checkpointing), trained(here, 3, checkpointing), strict=True):
        assert torch.equal(one, other)
    assert courier.most == 2
    assert fingerprints(away) == away.identity


def test_what_came_next_is_foreseen_in_either_direction() -> None:
    courier, order = Counting(), [0, 1, 2, 3, 3, 2, 1, 0]
    layers = [pack(torch.full((2, 2), float(i)), "as_computed").away(courier) for i in range(4)]
    for _ in range(2):
        for i in order:
            assert bool((layers[i].plain() == i).all())
    made: list[float] = []
    copy = courier._copy

    def noting(held: Held) -> Brought:
        made.append(float(held.tensors[0][0, 0]))
        return copy(held)

    courier._copy = noting  # pyright: ignore[reportAttributeAccessIssue]
    for i in order:
        layers[i].plain()
    assert made == [*order[1:], order[0]]  # each is under way before it is asked for


def test_a_layer_that_is_gone_is_forgotten() -> None:
    courier = Counting()
    layers = [pack(torch.ones(2, 2), "as_computed").away(courier) for _ in range(2)]
    for i in (0, 1, 0, 1):
        layers[i].plain()
    known = weakref.ref(layers[0])
    layers.clear()
    pack(torch.ones(2, 2), "as_computed").away(courier).plain()
    assert known() is None


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["as_computed", "int8", "nf4"])
def test_on_a_gpu_it_is_the_same_and_the_layers_are_not_there(random_base: Path, form: Any) -> None:
    named: dict[str, Any] = {"dtype": torch.float32, "device": "cuda", "storage": form}
    away, here = load(str(random_base), **named, offload=True), load(str(random_base), **named)
    for weight in (p for p in away.unet.parameters() if isinstance(p, Stored)):
        assert weight.is_cuda
        assert all(not tensor.is_cuda and tensor.is_pinned() for tensor in weight.packed.tensors if tensor.numel())
    x = torch.randn(2, 4, 16, 16, device="cuda")
    told = here.encode_text(["a", "a robot"])
    for _ in range(3):
        assert torch.equal(*(base.predict(x, torch.tensor([5, 700], device="cuda"), told) for base in (away, here)))
