"""The same as peft and diffusers: loss and gradients of every method, its training, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.peft import METHODS, Peft, attach_peft
from limner.adapters.peft_layers import PeftLayers
from limner.errors import UserError
from limner.export.lora_files import read_any_lora
from limner.export.peft_adapter import read_peft, write_peft
from limner.families.family import Family
from limner.objectives import Denoising
from limner.seeds import generator
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.types import Batch, Conditioning
from tests.fresh import fresh
from tests.unit.peft_methods import SPECS

CAPTIONS = ("a red robot", "a blue robot")
SHARED = {"randlora", "tinylora", "vera"}
"""Methods whose layers share tensors: peft loads their files only inside a model class of its own."""
every_method = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


class Fixed:
    """One batch, again and again."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        self.moments = torch.stack([torch.randn(2, 4, 16, 16, generator=draws), torch.full((2, 4, 16, 16), 0.2)], 1)

    def batch(self, step: int, *, seed: int) -> Batch:
        ids, none, hidden = ("a.png", "b.png"), (False, False), torch.zeros(2, 32, 32)
        return Batch(ids, self.moments, Conditioning(hidden), torch.ones(2), none, captions=CAPTIONS)


def attach(spec: Peft, family: Family) -> PeftLayers:
    """Attach with weights as if it had been trained."""
    adapter = spec.attach(family, [SlotSettings(seed=3)])
    draws = torch.Generator().manual_seed(3)
    for parameter in adapter.slot_parameters(0).values():
        parameter.detach().add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return adapter


def direct(spec: Peft, state: dict[str, Tensor], random_base: Path) -> tuple[Family, dict[str, Tensor]]:
    """Give the base, afresh, the method as peft itself injects it, with the same weights."""
    twin = fresh(random_base)
    learning: dict[str, Tensor] = {}
    for root, layers in spec.find_targets(twin.modules).items():
        config = spec.config(tuple(layers))
        tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](twin.modules[root], config, "default")
        for name, tensor in tuner.state_dict(keep_vars=True).items():
            own = f"{root}.{name.removeprefix('model.')}".replace(".default", "")
            if own in state:
                tensor.data.copy_(state[own])
                learning |= {own: tensor} if tensor.requires_grad else {}
    return twin, learning


def direct_loss(twin: Family, seed: int) -> Tensor:
    """Return the loss of the first step, written with diffusers' parts: latents, noise and timesteps from one seed."""
    draws, moments = generator(seed, "step", 0), Fixed().moments
    x_0 = (moments[:, 0] + moments[:, 1] * torch.randn(2, 4, 16, 16, generator=draws)) * twin.vae.config.scaling_factor
    noise = torch.randn(2, 4, 16, 16, generator=draws)
    t = torch.randint(1000, (2,), generator=draws)
    scheduler = DDPMScheduler.from_config(twin.scheduler_config)
    hidden = twin.encode_text(CAPTIONS, learn=True).hidden
    prediction = twin.unet(scheduler.add_noise(x_0, noise, t), t, encoder_hidden_states=hidden).sample
    return (prediction - scheduler.get_velocity(x_0, noise, t)).square().mean()


@every_method
def test_loss_and_gradients_equal_pefts_and_training_lowers_the_loss(
    spec: Peft, family: Family, random_base: Path
) -> None:
    weights = {f"{root}.{n}": w.clone() for root, m in family.modules.items() for n, w in m.state_dict().items()}
    adapter = attach(spec, family)
    state = adapter.state_dict()
    slot = Slot("s", Fixed(), seed=9, steps=4, learning_rate=3e-3)
    training = Training(family, adapter, [slot], objective=Denoising(snr_gamma=0.0), optimizer=AdamW(max_grad_norm=0.0))
    first = training.step().loss

    twin, learning = direct(spec, state, random_base)
    loss = direct_loss(twin, 9)
    loss.backward()
    assert first == pytest.approx(float(loss.detach()), rel=1e-5)
    mine = adapter.slot_parameters(0)
    assert mine.keys() == learning.keys()
    for name, parameter in mine.items():
        theirs = learning[name].grad
        if theirs is None or parameter.grad is None:
            assert theirs is None
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, theirs, rtol=1e-4, atol=1e-6)

    for _ in training:
        pass
    with torch.no_grad():
        assert float(direct_loss(family, 9)) < first
    assert all(change.norm > 0 for change in adapter.changes().values())
    adapter.detach()
    held = {f"{root}.{n}": w for root, m in family.modules.items() for n, w in m.state_dict().items()}
    assert all(torch.equal(held[name], weight) for name, weight in weights.items())


def output(family: Family) -> Tensor:
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return family.predict(x, torch.tensor([5, 700]), family.encode_text(CAPTIONS))


@every_method
def test_its_file_reads_back_here_and_in_peft(spec: Peft, family: Family, random_base: Path, tmp_path: Path) -> None:
    adapter, path = attach(spec, family), tmp_path / "a.safetensors"
    tuned = output(family)
    write_peft(spec, adapter.state_dict(), path, {"family": family.kind, "token": "sks"})
    once = path.read_bytes()
    write_peft(spec, adapter.state_dict(), path, {"family": family.kind, "token": "sks"})
    assert path.read_bytes() == once
    adapter.detach()

    plain_lora = METHODS[spec.method].kind == "LORA" and spec.method != "dora"
    if plain_lora:
        lora = read_any_lora(path)
        about, again = lora.about, lora.attach(family.modules)
        with pytest.raises(UserError, match="is not in the layout of adapter.kind=peft"):
            read_peft(path)
    else:
        read, state, about = read_peft(path)
        again = attach_peft(family, read, state)
    torch.testing.assert_close(output(family), tuned, rtol=0, atol=1e-5)
    assert about == {"family": "sd15", "token": "sks"}
    again.detach()

    if METHODS[spec.method].kind != "LORA" and spec.method not in SHARED:
        tensors = load_file(path)
        with safe_open(str(path), "pt") as file:
            configs = json.loads(file.metadata()["peft"])
        twin = fresh(random_base)
        for part, config in configs.items():
            inject_adapter_in_model(PeftConfig.from_peft_type(**config), twin.modules[part])
            own = {k.removeprefix(f"{part}."): t for k, t in tensors.items() if k.startswith(f"{part}.")}
            assert not set_peft_model_state_dict(twin.modules[part], own).unexpected_keys
        torch.testing.assert_close(output(twin), tuned, rtol=0, atol=1e-5)


def images(pipe: Any, latents: Tensor) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(list(CAPTIONS), latents=latents, num_inference_steps=3, guidance_scale=3.0, output_type="np").images
    return np.asarray(drawn)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.kind == "LORA"])
def test_stock_diffusers_loads_it_and_draws_the_same(
    method: str, family: Family, random_base: Path, tmp_path: Path
) -> None:
    spec, latents = SPECS[method], torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    pipe = StableDiffusionPipeline.from_pretrained(random_base, safety_checker=None, requires_safety_checker=False)
    plain = images(pipe, latents)
    adapter = attach(spec, family)
    ours = images(family.pipeline(pipe.scheduler), latents)
    write_peft(spec, adapter.state_dict(), tmp_path / "a.safetensors", {"family": "sd15"})
    pipe.load_lora_weights(str(tmp_path / "a.safetensors"))
    assert np.abs(ours - images(pipe, latents)).max() <= 1 / 255
    assert np.abs(ours - plain).max() > 10 / 255
