"""What every adapter must do, over every member of the recipe's union."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from limner import recipe
from limner.adapters.adapter import Attached, SlotSettings
from limner.adapters.lora import LoRA
from limner.errors import UserError
from limner.families.family import Family
from limner.types import Conditioning

ADAPTERS = get_args(recipe.Adapter) or (recipe.Adapter,)
CASES = {
    "lora-attention": LoRA(rank=4, targets="attention"),
    "lora-all": LoRA(rank=3, alpha=6.0, targets="all"),
    "lora-text": LoRA(rank=2, targets="attention", text_encoder=True),
}


def test_every_member_has_a_case() -> None:
    assert {type(spec) for spec in CASES.values()} == set(ADAPTERS)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def spec(request: pytest.FixtureRequest) -> LoRA:
    return request.param


def inputs(rows: int, seed: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, 16, 16, generator=draws)
    return x, torch.arange(rows) * 90 + 5, Conditioning(torch.randn(rows, 32, 32, generator=draws))


def output(family: Family, rows: int = 4) -> Tensor:
    """Draw through the text encoder too: rows of prompts, then the UNet."""
    x, t, _ = inputs(rows)
    with torch.no_grad():
        return family.predict(x, t, family.encode_text([f"critter {i}" for i in range(rows)]))


def shake(adapter: Attached, size: float = 0.05) -> None:
    """Give every slot weights as if it had been trained."""
    for slot in range(adapter.slots):
        draws = torch.Generator().manual_seed(slot)
        for parameter in adapter.slot_parameters(slot).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=draws))


def attach(spec: LoRA, family: Family, slots: int = 1) -> Attached:
    return spec.attach(family, [SlotSettings(seed=i) for i in range(slots)])


@pytest.mark.parametrize("slots", [1, 2])
def test_attach_is_the_identity_bit_for_bit(spec: LoRA, family: Family, slots: int) -> None:
    before = output(family)
    attach(spec, family, slots)
    assert torch.equal(before, output(family))


def test_detach_restores_the_base_bit_for_bit(spec: LoRA, family: Family) -> None:
    before, names = output(family), list(family.unet.state_dict())
    adapter = attach(spec, family)
    shake(adapter)
    assert not torch.equal(before, output(family))
    adapter.detach()
    assert torch.equal(before, output(family))
    assert list(family.unet.state_dict()) == names


def test_disabled_and_strength_zero_are_the_base(spec: LoRA, family: Family) -> None:
    before = output(family)
    adapter = attach(spec, family)
    shake(adapter)
    with adapter.disabled():
        assert torch.equal(before, output(family))
    adapter.set_strength(0.0)
    assert torch.equal(before, output(family))


def test_only_the_adapter_gets_gradients(spec: LoRA, family: Family) -> None:
    adapter = attach(spec, family)
    family.predict(*inputs(2)).square().mean().backward()
    assert all(p.grad is None for module in family.modules.values() for p in module.parameters())
    assert any(bool(p.grad.any()) for p in adapter.slot_parameters(0).values())


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_merged_equals_attached_and_unmerge_is_exact(spec: LoRA, family: Family, strength: float) -> None:
    before = output(family)
    weights = {k: v.clone() for k, v in family.unet.state_dict().items()}
    adapter = attach(spec, family, slots=2)
    shake(adapter)
    adapter.set_strength(strength)
    adapter.route([1, 1, 1, 1])
    attached = output(family)
    adapter.merge(slot=1)
    torch.testing.assert_close(output(family), attached, rtol=1e-4, atol=1e-5)
    adapter.unmerge()
    assert torch.equal(output(family), attached)
    adapter.detach()
    assert torch.equal(before, output(family))
    assert all(torch.equal(v, weights[k]) for k, v in family.unet.state_dict().items())


def test_saved_and_loaded_gives_the_same_output(spec: LoRA, family: Family) -> None:
    adapter = attach(spec, family)
    shake(adapter)
    tuned, state = output(family), adapter.state_dict()
    adapter.detach()
    other = attach(spec, family)
    other.load_state_dict(state)
    assert torch.equal(tuned, output(family))


def test_state_that_does_not_fit_is_refused(spec: LoRA, family: Family) -> None:
    adapter = attach(spec, family)
    state = adapter.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match="does not fit: .* of .* tensors match"):
        adapter.load_state_dict({**state, f"{name}x": state[name]})
    with pytest.raises(UserError, match="does not fit"):
        adapter.load_state_dict({**state, name: state[name][:-1] if state[name].ndim else torch.zeros(2)})


def test_each_row_gets_its_own_slot(spec: LoRA, family: Family) -> None:
    """N slots in one batch equal each slot alone, in blocks and routed row by row."""
    adapter = attach(spec, family, slots=3)
    shake(adapter)
    x, t, conditioning = inputs(6)
    with torch.no_grad():
        blocks = family.predict(x, t, conditioning)
        order = [2, 0, 1, 1, 0, 2]
        adapter.route(order)
        routed = family.predict(x, t, conditioning)
    states = [adapter.state_dict(i) for i in range(3)]
    adapter.detach()
    for i, state in enumerate(states):
        alone = attach(spec, family)
        alone.load_state_dict(state)
        with torch.no_grad():
            expected = family.predict(x, t, conditioning)
        alone.detach()
        torch.testing.assert_close(blocks[2 * i : 2 * i + 2], expected[2 * i : 2 * i + 2], rtol=1e-4, atol=1e-5)
        mine = [row for row, slot in enumerate(order) if slot == i]
        torch.testing.assert_close(routed[mine], expected[mine], rtol=1e-4, atol=1e-5)


def test_slot_starts_as_a_run_of_its_own_would(spec: LoRA, family: Family) -> None:
    stacked = attach(spec, family, slots=3)
    second = stacked.state_dict(1)
    stacked.detach()
    alone = spec.attach(family, [SlotSettings(seed=1)])
    assert all(torch.equal(v, second[k]) for k, v in alone.state_dict().items())
