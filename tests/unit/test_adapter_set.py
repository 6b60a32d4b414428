"""Several adapters on one base: what acts is the sum of what was asked for, and the base comes back bit for bit."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from limner.adapter_file import LoRAFile, read_adapter
from limner.adapter_set import AdapterSet
from limner.adapters.adapter import Attached, SlotSettings
from limner.adapters.lora import StackedLoRA, find_layers
from limner.adapters.peft import Peft
from limner.adapters.strength import Strength
from limner.errors import UserError
from limner.export.embedding import write_embedding
from limner.export.peft_adapter import write_peft
from limner.families.family import Family
from limner.families.load import load
from tests.fresh import fresh
from tests.lora_files import write_random_lora

DOG, CAT = "<dog>", "<cat>"


def picture(family: Family, prompt: str = f"a {DOG} and a {CAT}") -> Tensor:
    draws = torch.Generator().manual_seed(3)
    x_t = torch.randn(1, 4, 16, 16, generator=draws)
    with torch.no_grad():
        return family.predict(x_t, torch.tensor([600]), family.encode_text([prompt]))


@pytest.fixture(scope="module")
def base(random_sd15: Path) -> Family:
    """Load a base that every test here gives back as it was."""
    return fresh(random_sd15)


@pytest.fixture(scope="module")
def files(base: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write adapters of every kind: LoRAs, a DoRA, learned words."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {
        "a": write_random_lora(base, folder / "a.safetensors", seed=1, token="sks"),
        "b": write_random_lora(base, folder / "b.safetensors", seed=2, token="sks", rank=3, targets="all"),
    }
    spec = Peft(method="dora", rank=2, targets="attention", text_encoder=True)
    dora = spec.attach(base, [SlotSettings(seed=5)])
    for tensor in dora.slot_parameters(0).values():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(6))
    found["dora"] = folder / "dora.safetensors"
    write_peft(spec, dora.state_dict(), found["dora"], base.facts)
    dora.detach()
    for name, word in (("dog", DOG), ("cat", CAT)):
        vectors = {
            root: torch.randn(2, encoder.model.config.hidden_size, generator=torch.Generator().manual_seed(len(word)))
            * (1 if word == DOG else -1)
            for root, encoder in base.encoders.items()
        }
        found[name] = write_embedding(vectors, folder / f"{name}.safetensors", token=word, about=base.facts)
    return found


def living() -> tuple[int, int, int]:
    """Return how many tensors and how many hooks' owners there are, and the bytes of the process."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    rss: int = psutil.Process().memory_info().rss
    return sum(issubclass(kind, Tensor) for kind in kinds), sum(issubclass(kind, Attached) for kind in kinds), rss


def loaded(base: Family, files: dict[str, Path], names: str = "a b dog cat") -> AdapterSet:
    adapters = AdapterSet(base)
    for name in names.split():
        adapters.load(files[name])
    return adapters


STRENGTHS = st.sampled_from([0.0, 0.5, -1.0, Strength(1.0, {"text": 0.0, "up": 0.3})])
CHOICES = st.fixed_dictionaries(
    {}, optional={"a": STRENGTHS, "b": STRENGTHS, "dog": st.sampled_from([0.0, 1.0]), "cat": st.just(1.0)}
)


@given(choices=st.lists(st.tuples(CHOICES, st.booleans()), min_size=1, max_size=2))
@hypothesis_settings(max_examples=4)
def test_any_sequence_leaves_what_was_set_last_and_then_the_base(base, files, choices) -> None:
    """Whatever was set, merged and set again before: the same picture as from a fresh start, and the base's bits."""
    before = {name: weight.clone() for root in base.parts.values() for name, weight in root.named_parameters()}
    untouched = picture(base)
    adapters = loaded(base, files)
    for choice, merge in choices:
        adapters.set(choice)
        if merge:
            adapters.merge()
    last = choices[-1][0]
    adapters.set(last)
    found = picture(base)
    adapters.set({})
    fresh = loaded(base, files)
    fresh.set(last)
    assert torch.equal(picture(base), found)
    for name in list(last):
        fresh.remove(name)
    assert torch.equal(picture(base), untouched)
    assert not base.placeholders
    after = {name: weight for root in base.parts.values() for name, weight in root.named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_adapters_are_the_sum_of_their_changes(base: Family, files: dict[str, Path]) -> None:
    adapters = loaded(base, files)
    strengths = {"a": Strength(0.5), "b": Strength(1.0, {"mid": 0.0, "text": -0.5})}
    adapters.set(strengths)
    on_the_fly = picture(base)
    adapters.set({})
    for name, strength in strengths.items():
        (file,) = read_adapter(files[name])
        assert isinstance(file, LoRAFile)
        shapes = {layer: change.shape for layer, change in file.lora.layers.items()}
        for layer, module in find_layers(base.modules, shapes).items():
            module.get_parameter("weight").data += strength.of(layer) * file.lora.delta(layer, module.weight)
    summed = picture(base)
    torch.testing.assert_close(summed, on_the_fly, rtol=1e-4, atol=1e-5)
    again = load(base.name, dtype=torch.float32, device="cpu")
    for own, read in zip(base.unet.parameters(), again.unet.parameters(), strict=True):
        own.data.copy_(read)
    for root, encoder in base.encoders.items():
        for own, read in zip(encoder.model.parameters(), again.encoders[root].model.parameters(), strict=True):
            own.data.copy_(read)


def test_merged_is_as_on_the_fly_with_a_method_that_depends_on_the_weights(base, files) -> None:
    """A LoRA and a DoRA on the same layers: each adds once, in whichever order they were set."""
    adapters, untouched = loaded(base, files, "a dora"), picture(base)
    found = []
    for order in (("a", "dora"), ("dora", "a")):
        adapters.set(dict.fromkeys(order, 1.0))
        found.append(picture(base))
        adapters.merge()
        torch.testing.assert_close(picture(base), found[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    adapters.set({})
    assert torch.equal(picture(base), untouched)


def test_words_of_several_files_are_there_at_once(base: Family, files: dict[str, Path]) -> None:
    adapters = loaded(base, files)
    pictures = {}
    for names in (["dog"], ["cat"], ["dog", "cat"], ["cat", "dog"]):
        adapters.set(dict.fromkeys(names, 1.0))
        pictures[" ".join(names)] = [picture(base, f"a {word}") for word in (DOG, CAT)]
    adapters.set({})
    assert torch.equal(pictures["dog"][0], pictures["dog cat"][0])
    assert torch.equal(pictures["cat"][1], pictures["dog cat"][1])
    assert torch.equal(pictures["dog cat"][1], pictures["cat dog"][1])
    assert not torch.equal(pictures["dog"][0], pictures["cat"][1])
    assert not torch.equal(pictures["dog"][1], pictures["cat"][1])  # not loaded, it is only letters


def test_what_cannot_be_is_said(base: Family, files: dict[str, Path]) -> None:
    adapters, untouched = loaded(base, files, "a b dora dog"), picture(base)
    with pytest.raises(UserError, match="no adapter is called 'bob'. Loaded are a, b, dora, dog"):
        adapters.set({"bob": 1.0})
    with pytest.raises(UserError, match="a: there is no part 'up.9'. The parts are down, down.0, .*text, text_encoder"):
        adapters.set({"a": Strength(1.0, {"up.9": 0.0})})
    with pytest.raises(UserError, match=r"strength 0.5: a learned word has no strength"):
        adapters.set({"a": 1.0, "dog": 0.5})
    assert adapters.active == {}
    assert torch.equal(picture(base), untouched)
    assert adapters.load(files["dog"]) == "dog-2"
    with pytest.raises(UserError, match="dog and dog-2 both hold the learned word '<dog>'"):
        adapters.set({"dog": 1.0, "dog-2": 1.0})
    adapters.load(files["dora"], name="second")
    with pytest.raises(UserError, match=r"dora \(dora\) and second \(dora\) cannot act together"):
        adapters.set({"dora": 1.0, "second": 1.0})
    with pytest.raises(UserError, match="'a': is loaded already"):
        adapters.load(files["b"], name="a")
    adapters.set({"a": 1.0, "b": 1.0})
    assert adapters.clashes() == ["a and b were both trained for 'sks': a prompt with it asks for both"]
    adapters.set({})
    with pytest.raises(UserError, match="None is loaded"):
        AdapterSet(base).remove("a")


def test_a_swap_builds_nothing_and_copies_nothing(base: Family, files: dict[str, Path], monkeypatch) -> None:
    """Built once when it is loaded, a LoRA's layers act on the file's own memory each time that they are set."""
    adapters, untouched = loaded(base, files, "a b"), picture(base)
    adapters.set({"a": 1.0})
    first = picture(base)
    monkeypatch.setattr("limner.adapters.lora_layer.LoRALayer.__init__", None)
    for name in ("b", "a"):
        adapters.set({name: 1.0})
    assert torch.equal(picture(base), first)
    adapters.set({})
    assert torch.equal(picture(base), untouched)
    monkeypatch.undo()
    (file,) = read_adapter(files["a"])
    assert isinstance(file, LoRAFile)
    (attached,) = file.attach(base)
    assert isinstance(attached, StackedLoRA)
    attached.detach()
    for name, layer in attached.layers.items():
        assert np.shares_memory(layer.A.detach().numpy(), file.lora.layers[name].A)


def test_a_thousand_swaps_leave_nothing_behind(base: Family, tmp_path: Path) -> None:
    """Small LoRAs of one layer: hooks, parameters and memory stay as they were."""
    layer = next(name for name, _ in base.unet.named_modules() if name.endswith("attn2.to_k"))
    adapters = AdapterSet(base)
    for seed, name in enumerate(("x", "y")):
        settings = {"targets": (f"unet.{layer}",), "text_encoder": False, "rank": 512}
        adapters.load(write_random_lora(base, tmp_path / f"{name}.safetensors", seed=seed, **settings))

    def swap(times: int) -> None:
        for number in range(times):
            adapters.set({("x", "y")[number % 2]: 1.0})

    swap(20)
    adapters.set({})
    before = living()
    swap(1000)
    adapters.set({})
    after = living()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 32 * 2**20  # a thousand sets of these parameters are 94 MiB
    assert not any(module._forward_hooks for root in base.modules.values() for module in root.modules())  # noqa: SLF001
