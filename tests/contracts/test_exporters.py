"""What every exporter must do: write, read back, and mean the same to the program it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA, attach_lora
from limner.errors import Guarded
from limner.export.diffusers_lora import has_effect, read_lora, write_lora
from limner.families.family import Family

SPECS = {
    "rank-1": LoRA(rank=1),
    "alpha": LoRA(rank=4, alpha=1.0),
    "all": LoRA(rank=2, targets="all"),
    "text": LoRA(text_encoder=True),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def state(request: pytest.FixtureRequest, family: Family) -> dict[str, torch.Tensor]:
    adapter = request.param.attach(family, [SlotSettings(seed=1)])
    for parameter in adapter.slot_parameters(0).values():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    found = adapter.state_dict()
    adapter.detach()
    return found


def test_round_trip_gives_the_same_model(state: dict[str, torch.Tensor], family: Family, tmp_path: Path) -> None:
    x_t, t, prompts = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), ["a", "b"]
    adapter = attach_lora(family.modules, state)
    with torch.no_grad():
        before = family.predict(x_t, t, family.encode_text(prompts))
    adapter.detach()
    write_lora(state, tmp_path / "a.safetensors", {"family": family.kind})
    read, about = read_lora(tmp_path / "a.safetensors")
    attach_lora(family.modules, read)
    with torch.no_grad():
        after = family.predict(x_t, t, family.encode_text(prompts))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert about == {"family": "sd15"}


def test_the_program_it_is_for_uses_every_key(
    state: dict[str, torch.Tensor], random_base: Path, tmp_path: Path
) -> None:
    """No key of the file is left over and no adapter weight is missing in diffusers."""
    path = tmp_path / "a.safetensors"
    write_lora(state, path, {})
    pipe = StableDiffusionPipeline.from_pretrained(random_base, safety_checker=None, requires_safety_checker=False)
    pipe.load_lora_weights(str(path))
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    named = {f"{part}.{n}": p for part, module in parts.items() for n, p in module.named_parameters()}
    loaded = {n.replace(".default_0", ""): p for n, p in named.items() if ".lora_" in n}
    written = load_file(str(path))
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())


def test_weights_that_are_not_finite_are_never_written(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = next(name for name in state if name.endswith(".lora_B"))
    with pytest.raises(Guarded, match="is not finite"):
        write_lora({**state, name: torch.full_like(state[name], float("nan"))}, tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_a_lora_of_zeros_has_no_effect(state: dict[str, torch.Tensor]) -> None:
    assert has_effect(state)
    zeros = {name: torch.zeros_like(t) if name.endswith(".lora_B") else t for name, t in state.items()}
    assert not has_effect(zeros)
