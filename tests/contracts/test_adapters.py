"""What every adapter must do, over every member of the recipe's union."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from limner import recipe
from limner.adapters.adapter import Attached, SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.adapters.peft import Peft
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.errors import UserError
from limner.families.family import Family
from limner.families.load import load
from limner.types import Conditioning
from tests.unpacked import unpacked

ADAPTERS = get_args(get_args(recipe.Adapter)[0])
WORD = "<it>"
CASES: dict[str, Any] = {
    "lora-attention": LoRA(rank=4, targets="attention"),
    "lora-all": LoRA(rank=3, alpha=6.0, targets="all"),
    "lora-text": LoRA(rank=2, targets="attention", text_encoder=True),
    "full": Full(),
    "full-part-text": Full(targets=("*.attn2.*",), text_encoder=True),
    "words": TextualInversion(vectors=3),
    "peft-dora": Peft(method="dora", rank=2, targets="transformer", text_encoder=True),
    "peft-lokr": Peft(method="lokr", rank=2, targets="all"),
    "peft-vera": Peft(method="vera", rank=4),
    "pivotal": Pivotal(lora=LoRA(rank=2, targets="attention"), words=TextualInversion(vectors=2)),
}
STACKED = [name for name, spec in CASES.items() if isinstance(spec, LoRA | TextualInversion | Pivotal)]
stacked = pytest.mark.parametrize("spec", [CASES[name] for name in STACKED], ids=STACKED)


def test_every_member_has_a_case() -> None:
    assert {type(spec) for spec in CASES.values()} == set(ADAPTERS)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def spec(request: pytest.FixtureRequest) -> Any:
    return request.param


def inputs(rows: int, seed: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, 16, 16, generator=draws)
    return x, torch.arange(rows) * 90 + 5, Conditioning(torch.randn(rows, 32, 32, generator=draws))


def output(family: Family, rows: int = 4, word: str = WORD) -> Tensor:
    """Draw through the text encoder too: rows of prompts, then the UNet."""
    x, t, _ = inputs(rows)
    with torch.no_grad():
        return family.predict(x, t, family.encode_text([f"{word} critter {i}" for i in range(rows)]))


def shake(adapter: Attached, size: float = 0.05) -> None:
    """Give every slot weights as if it had been trained."""
    for slot in range(adapter.slots):
        draws = torch.Generator().manual_seed(slot)
        for parameter in adapter.slot_parameters(slot).values():
            parameter.detach().add_(size * torch.randn(parameter.shape, generator=draws))


def attach(spec: Any, family: Family, slots: int = 1) -> Attached:
    return spec.attach(family, [SlotSettings(seed=i, words={WORD: "robot"}) for i in range(slots)])


def test_attach_is_the_identity_bit_for_bit(spec: Any, family: Family) -> None:
    """A learned word is new from the start; prompts without it are what they were."""
    before = output(family, word="big")
    attach(spec, family)
    assert torch.equal(before, output(family, word="big"))


@stacked
def test_two_slots_attach_as_the_identity_too(spec: Any, family: Family) -> None:
    before = output(family, word="big")
    attach(spec, family, slots=2)
    assert torch.equal(before, output(family, word="big"))


def test_changes_are_counted_by_group(spec: Any, family: Family) -> None:
    adapter = attach(spec, family)
    assert {change.norm for change in adapter.changes().values()} == {0.0}
    shake(adapter)
    changes = adapter.changes()
    names = adapter.slot_parameters(0)
    assert set(changes) == {name.partition(".")[0] for name in names}
    assert all(change.norm > 0 for change in changes.values())
    assert sum(change.parameters for change in changes.values()) == adapter.trainable_parameters()
    assert sum(change.tensors for change in changes.values()) == len(names)
    assert set(changes) <= spec.rates(1e-3).keys()


def test_detach_restores_the_base_bit_for_bit(spec: Any, family: Family) -> None:
    before, names = output(family), list(family.unet.state_dict())
    adapter = attach(spec, family)
    shake(adapter)
    assert not torch.equal(before, output(family))
    adapter.detach()
    assert torch.equal(before, output(family))
    assert list(family.unet.state_dict()) == names


def test_disabled_and_strength_zero_are_the_base(spec: Any, family: Family) -> None:
    before = output(family)
    adapter = attach(spec, family)
    shake(adapter)
    with adapter.disabled():
        assert torch.equal(before, output(family))
    adapter.set_strength(0.0)
    assert torch.equal(before, output(family))


def test_only_the_adapter_gets_gradients(spec: Any, family: Family) -> None:
    adapter = attach(spec, family)
    x, t, _ = inputs(2)
    text = family.encode_text([f"{WORD} critter"] * 2, learn=adapter.learns_text)
    family.predict(x, t, text).square().mean().backward()
    learning = adapter.slot_parameters(0)
    assert any(bool(p.grad.any()) for p in learning.values() if p.grad is not None)
    own = {id(p) for p in learning.values()}
    frozen = [p for module in (*family.modules.values(), family.vae) for p in module.parameters() if id(p) not in own]
    assert all(p.grad is None for p in frozen)


@pytest.mark.parametrize("spec", [spec for spec in CASES.values() if not isinstance(spec, Full)])
def test_it_learns_on_a_packed_base_as_on_the_same_one_unpacked(spec: Any, random_base: Path) -> None:
    def learned(base: Family) -> tuple[Tensor, dict[str, Tensor | None]]:
        adapter = attach(spec, base)
        shake(adapter)
        x, t, _ = inputs(2)
        out = base.predict(x, t, base.encode_text([f"{WORD} critter"] * 2, learn=adapter.learns_text))
        out.square().mean().backward()
        return out.detach(), {name: p.grad for name, p in adapter.slot_parameters(0).items()}

    named: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "storage": "nf4"}
    (there, back), (own_there, own_back) = (
        learned(base) for base in (unpacked(load(str(random_base), **named)), load(str(random_base), **named))
    )
    assert torch.equal(there, own_there)
    torch.testing.assert_close(own_back, back, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [CASES[n] for n in ("lora-attention", "lora-all", "lora-text", "pivotal")])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_merged_equals_attached_and_unmerge_is_exact(spec: Any, family: Family, strength: float) -> None:
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


def test_saved_and_loaded_gives_the_same_output(spec: Any, family: Family) -> None:
    adapter = attach(spec, family)
    shake(adapter)
    tuned, state = output(family), adapter.state_dict()
    adapter.detach()
    other = attach(spec, family)
    other.load_state_dict(state)
    assert torch.equal(tuned, output(family))


def test_state_that_does_not_fit_is_refused(spec: Any, family: Family) -> None:
    adapter = attach(spec, family)
    state = adapter.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match="does not fit: .* of .* tensors match"):
        adapter.load_state_dict({**state, f"{name}x": state[name]})
    with pytest.raises(UserError, match="does not fit"):
        adapter.load_state_dict({**state, name: state[name][:-1] if state[name].ndim else torch.zeros(2)})


@stacked
def test_each_row_gets_its_own_slot(spec: Any, family: Family) -> None:
    """N slots in one batch equal each slot alone, in blocks and routed row by row."""
    adapter = attach(spec, family, slots=3)
    shake(adapter)
    blocks = output(family, 6)
    order = [2, 0, 1, 1, 0, 2]
    adapter.route(order)
    routed = output(family, 6)
    states = [adapter.state_dict(i) for i in range(3)]
    adapter.detach()
    for i, state in enumerate(states):
        alone = attach(spec, family)
        alone.load_state_dict(state)
        expected = output(family, 6)
        alone.detach()
        torch.testing.assert_close(blocks[2 * i : 2 * i + 2], expected[2 * i : 2 * i + 2], rtol=1e-4, atol=1e-5)
        mine = [row for row, slot in enumerate(order) if slot == i]
        torch.testing.assert_close(routed[mine], expected[mine], rtol=1e-4, atol=1e-5)


@stacked
def test_slot_starts_as_a_run_of_its_own_would(spec: Any, family: Family) -> None:
    three = attach(spec, family, slots=3)
    second = three.state_dict(1)
    three.detach()
    alone = spec.attach(family, [SlotSettings(seed=1, words={WORD: "robot"})])
    assert all(torch.equal(v, second[k]) for k, v in alone.state_dict().items())


def test_half_the_strength_is_half_of_the_way(family: Family) -> None:
    """Full weights between the base's and the tuned ones; a word cannot be half there."""
    weights = family.unet.conv_in.weight.detach().clone()
    adapter = attach(Full(), family)
    shake(adapter)
    tuned = adapter.state_dict()["unet.conv_in.weight"]
    adapter.set_strength(0.5)
    torch.testing.assert_close(family.unet.conv_in.weight.detach(), (weights + tuned) / 2)
    assert torch.equal(adapter.state_dict()["unet.conv_in.weight"], tuned)
    adapter.set_strength(1.0)
    assert torch.equal(family.unet.conv_in.weight.detach(), tuned)
    adapter.detach()
    with pytest.raises(UserError, match="a learned word has no strength"):
        attach(TextualInversion(), family).set_strength(0.5)


def test_one_set_of_weights_serves_one_subject(family: Family) -> None:
    with pytest.raises(UserError, match="adapter.kind=full: trains one subject at a time, not 2"):
        attach(Full(), family, slots=2)
    with pytest.raises(UserError, match=r"'\*.nothing' matches none of the base's"):
        attach(Full(targets=("*.nothing",)), family)


def test_learned_words_leave_the_table_and_other_words_alone(family: Family) -> None:
    table = family.encoders["text_encoder"].model.get_input_embeddings().weight.detach().clone()
    plain = family.encode_text(["a robot"]).hidden
    adapter = attach(TextualInversion(vectors=2), family)
    shake(adapter)
    assert family.tokens(f"a {WORD}, ok")[1:3] == [-1, -2]
    assert torch.equal(family.encode_text(["a robot"]).hidden, plain)
    assert torch.equal(family.encoders["text_encoder"].model.get_input_embeddings().weight, table)
    assert min(family.tokens(f"a{WORD}")) >= 0  # a part of a longer word is not the word


def test_a_word_begins_as_its_initializer(family: Family) -> None:
    """One vector, one-token initializer: the prompt means the same as with the initializer."""
    (robot,) = family.tokens("robot")
    attach(TextualInversion(vectors=1), family)
    assert family.tokens(WORD) == [-1]
    assert robot > 0
    assert torch.equal(family.encode_text([f"a {WORD}"]).hidden, family.encode_text(["a robot"]).hidden)


def test_a_word_that_the_base_knows_is_refused(family: Family) -> None:
    with pytest.raises(UserError, match="pictures.token='robot': is already a word in the base's vocabulary"):
        TextualInversion().attach(family, [SlotSettings(seed=0, words={"robot": "critter"})])
    with pytest.raises(UserError, match="pictures.token: is needed"):
        TextualInversion().attach(family, [SlotSettings(seed=0)])
