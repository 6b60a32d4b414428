"""Every method of peft: attached, switched, merged, saved and detached without a trace; what is refused, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.peft import METHODS, Peft
from limner.adapters.peft_layers import MOVES_BASE, PeftLayers
from limner.errors import UserError
from limner.families.family import Family
from limner.recipe import load_recipe
from tests.fresh import fresh
from tests.unit.peft_methods import SPECS


def attach(spec: Peft, family: Family, seed: int = 0) -> PeftLayers:
    return spec.attach(family, [SlotSettings(seed=seed)])


def output(family: Family) -> Tensor:
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return family.predict(x, torch.tensor([5, 700]), family.encode_text(["a", "a photo of a robot"]))


def shake(adapter: PeftLayers) -> None:
    draws = torch.Generator().manual_seed(0)
    for parameter in adapter.slot_parameters(0).values():
        parameter.detach().add_(0.05 * torch.randn(parameter.shape, generator=draws))


def test_every_method_has_a_case() -> None:
    assert set(get_args(Peft.model_fields["method"].annotation)) == METHODS.keys() == SPECS.keys()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_it_comes_and_goes_without_a_trace(spec: Peft, family: Family) -> None:
    modules = {f"{root}.{n}": m for root, module in family.modules.items() for n, m in module.named_modules()}
    weights = {f"{root}.{n}": w.clone() for root, m in family.modules.items() for n, w in m.state_dict().items()}
    before, drawn = output(family), torch.get_rng_state()

    def untouched() -> bool:
        now = {f"{root}.{n}": m for root, module in family.modules.items() for n, m in module.named_modules()}
        held = {f"{root}.{n}": w for root, m in family.modules.items() for n, w in m.state_dict().items()}
        same = now.keys() == modules.keys() and all(now[name] is modules[name] for name in modules)
        return same and held.keys() == weights.keys() and all(torch.equal(held[n], w) for n, w in weights.items())

    adapter = attach(spec, family)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert untouched()
    torch.testing.assert_close(output(family), before, rtol=0, atol=1e-4 if spec.method in MOVES_BASE else 1e-5)
    assert {change.norm for change in adapter.changes().values()} == {0.0}

    shake(adapter)
    tuned, state = output(family), adapter.state_dict()
    assert float((tuned - before).abs().max()) > 1e-3
    assert {p.dtype for p in adapter.slot_parameters(0).values()} == {torch.float32}
    assert all(change.norm > 0 for change in adapter.changes().values())
    with adapter.disabled():
        assert torch.equal(output(family), before)

    adapter.set_strength(0.5)
    half = output(family)
    adapter.merge()
    torch.testing.assert_close(output(family), half, rtol=1e-4, atol=1e-5)
    adapter.unmerge()
    assert torch.equal(output(family), half)
    adapter.detach()
    assert torch.equal(output(family), before)
    assert untouched()
    assert not hasattr(family.unet, "peft_config")

    again = attach(spec, family, seed=7)  # what it draws itself is in the state too
    again.load_state_dict(state)
    torch.testing.assert_close(output(family), tuned, rtol=0, atol=1e-6)


def test_the_seed_decides_the_first_weights(family: Family) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.rand(3)  # whatever was drawn before
        adapter = attach(Peft(method="loha", rank=2), family, seed)
        states.append(adapter.state_dict())
        adapter.detach()
    one, same, other = states
    assert all(torch.equal(t, same[name]) for name, t in one.items())
    assert any(not torch.equal(t, other[name]) for name, t in one.items())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_it_learns_in_float32_on_a_base_in_bfloat16(spec: Peft, random_base: Path) -> None:
    family = fresh(random_base, torch.bfloat16)
    adapter = attach(spec, family)
    x, t = torch.randn(2, 4, 16, 16, dtype=torch.bfloat16), torch.tensor([5, 700])
    predicted = family.predict(x, t, family.encode_text(["a", "b"]))
    assert predicted.dtype == torch.bfloat16
    predicted.float().square().mean().backward()
    learning = adapter.slot_parameters(0).values()
    assert {p.dtype for p in learning} == {p.grad.dtype for p in learning if p.grad is not None} == {torch.float32}
    adapter.merge()
    assert {p.dtype for p in family.unet.parameters()} == {torch.bfloat16}


def test_what_a_method_cannot_do_is_refused(family: Family) -> None:
    with pytest.raises(UserError, match="adapter.kind=peft: trains one subject at a time, not 2"):
        Peft().attach(family, [SlotSettings(seed=0), SlotSettings(seed=1)])
    with pytest.raises(UserError, match=r"vera changes linear layers only, and \d+ of the \d+ .* \(first: unet\."):
        attach(Peft(method="vera", targets="all"), family)
    with pytest.raises(UserError, match=r"'\*.nope' matches none of the base's"):
        attach(Peft(targets=("*.nope",)), family)
    with pytest.raises(UserError, match="adapter.method=c3a: peft refuses these settings .*block size"):
        attach(Peft(method="c3a", options={"block_size": 7}), family)
    with pytest.raises(UserError, match="adapter.method=oft: peft refuses these settings .*Invalid `oft_block_size`"):
        attach(Peft(method="oft", options={"oft_block_size": 5}), family)
    for module in family.modules.values():  # nothing half-made is left behind
        assert not any(isinstance(m, BaseTunerLayer) for m in module.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ia3", "rank": 4}, "ia3 has no rank; leave it out"),
        ({"method": "vera", "alpha": 4.0}, "vera has no alpha; leave it out and see options: projection_prng_key"),
        ({"method": "loha", "options": {"decompose_factor": 4}}, "its options are: use_effective_conv2d"),
        ({"method": "hira", "options": {"bias": "all"}}, "its options are: none"),
    ],
)
def test_settings_that_a_method_lacks_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Peft(**settings)
    with pytest.raises(UserError, match=message):
        load_recipe("lora", {"adapter": {"kind": "peft", **settings}})


def test_every_option_is_one_of_pefts() -> None:
    for name, method in METHODS.items():
        fields = vars(Peft(method=name).config(["a"]))
        assert {*method.options, *method.fixed, *filter(None, (method.rank, method.alpha))} <= fields.keys(), name
