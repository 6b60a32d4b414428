"""The same as diffusers and peft: schedule algebra, pictures, LoRA, loss and gradients, the adapter file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from safetensors import safe_open

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.errors import UserError
from limner.export.diffusers_lora import write_lora
from limner.export.lora_files import read_any_lora
from limner.families.family import Family
from limner.families.load import load
from limner.generate.draw import Request, Sampling, draw, make_scheduler
from limner.objectives import Denoising
from limner.schedule import Schedule
from limner.seeds import generator
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.types import Batch, Conditioning

TYPES = ("epsilon", "v_prediction", "sample")


def ddpm(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


@pytest.mark.parametrize("prediction_type", TYPES)
def test_schedule_is_that_of_diffusers(prediction_type: str) -> None:
    theirs = ddpm(prediction_type)
    ours = Schedule(theirs.alphas_cumprod, prediction_type)
    x_0, noise, t = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8), torch.tensor([0, 20, 400, 800, 999])
    x_t = ours.add_noise(x_0, noise, t)
    torch.testing.assert_close(x_t, theirs.add_noise(x_0, noise, t))
    target = {"epsilon": noise, "sample": x_0, "v_prediction": theirs.get_velocity(x_0, noise, t)}[prediction_type]
    torch.testing.assert_close(ours.target(x_0, noise, t), target)
    torch.testing.assert_close(ours.predicted_x_0(target, x_t, t), x_0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.snr(t), compute_snr(theirs, t))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weight_is_the_clipped_x_0_error(prediction_type: str) -> None:
    """In any space the weighted error equals min(snr, gamma) times the x_0-error (arXiv:2303.09556)."""
    schedule = Schedule(ddpm(prediction_type).alphas_cumprod.double(), prediction_type)
    t = torch.tensor([5, 300, 700, 950])
    x_0, noise, guess = (torch.randn(4, 4, 8, 8, dtype=torch.float64) for _ in range(3))
    x_t = schedule.add_noise(x_0, noise, t)
    error = (guess - schedule.target(x_0, noise, t)).square().mean((1, 2, 3)) * schedule.min_snr_weight(t, 5.0)
    x_0_error = (schedule.predicted_x_0(guess, x_t, t) - x_0).square().mean((1, 2, 3))
    torch.testing.assert_close(error, schedule.snr(t).clamp(max=5.0) * x_0_error)


def peft_twin(random_base: Path, state: dict[str, torch.Tensor], spec: LoRA) -> Family:
    """Load the base again and give its UNet peft's LoRA with the same weights."""
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    layers = {n.removeprefix("unet."): n for n in spec.find_targets(family.modules)}
    family.unet.add_adapter(
        LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha or spec.rank, target_modules=list(layers), init_lora_weights=False
        )
    )
    for path, name in layers.items():
        module = family.unet.get_submodule(path)
        with torch.no_grad():
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            A.copy_(state[f"{name}.lora_A"])
            B.copy_(state[f"{name}.lora_B"].view_as(B))
    return family


def trained(family: Family, spec: LoRA, seed: int = 3):
    adapter = spec.attach(family, [SlotSettings(seed=seed)])
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.slot_parameters(0).items():
        if name.endswith(".B"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    return adapter


@pytest.mark.parametrize(
    "spec", [LoRA(rank=4, alpha=2.0, targets="attention"), LoRA(rank=2, targets="all")], ids=["attention", "all"]
)
def test_lora_loss_and_gradients_equal_pefts(family: Family, random_base: Path, spec: LoRA) -> None:
    adapter = trained(family, spec)
    twin = peft_twin(random_base, adapter.state_dict(), spec)
    draws = torch.Generator().manual_seed(0)
    moments = torch.stack([torch.randn(2, 4, 16, 16, generator=draws), torch.full((2, 4, 16, 16), 0.2)], 1)
    hidden, weight = torch.randn(2, 32, 32, generator=draws), torch.tensor([1.0, 0.6])

    class Fixed:
        def batch(self, step: int, *, seed: int) -> Batch:
            return Batch(("a.png", "b.png"), moments, Conditioning(hidden), weight, (False, True))

    slot = Slot("s", Fixed(), seed=9, steps=1, learning_rate=1e-3)
    run = Training(family, adapter, [slot], objective=Denoising(snr_gamma=5.0), optimizer=AdamW(max_grad_norm=0.0))
    step = run.step()

    # the same loss, written with diffusers' parts: latents, then noise, then timesteps from the slot's generator
    noises = generator(9, "step", 0)
    x_0 = (moments[:, 0] + moments[:, 1] * torch.randn(2, 4, 16, 16, generator=noises)) * twin.vae.config.scaling_factor
    noise = torch.randn(2, 4, 16, 16, generator=noises)
    t = torch.randint(1000, (2,), generator=noises)
    theirs = DDPMScheduler.from_config(twin.scheduler_config)
    prediction = twin.unet(theirs.add_noise(x_0, noise, t), t, encoder_hidden_states=hidden).sample
    losses = (prediction - theirs.get_velocity(x_0, noise, t)).square().mean((1, 2, 3))
    snr = compute_snr(theirs, t)
    instance, prior = losses * snr.clamp(max=5.0) / (snr + 1)
    loss = instance + 0.6 * prior
    loss.backward()
    loss, instance, prior = (float(one.detach()) for one in (loss, instance, prior))

    assert step.loss == pytest.approx(loss, rel=1e-5)
    assert step.slots[0].instance_loss == pytest.approx(instance, rel=1e-5)
    assert step.slots[0].prior_loss == pytest.approx(prior, rel=1e-5)
    for name, parameter in adapter.slot_parameters(0).items():
        path, _, factor = name.removeprefix("unet.").rpartition(".")
        peft = getattr(twin.unet.get_submodule(path), f"lora_{factor}")["default"].weight.grad
        torch.testing.assert_close(parameter.grad, peft.view_as(parameter), rtol=1e-4, atol=1e-7)


def images(family: Family, out: Path, prompts: list[str]) -> list[np.ndarray]:
    from PIL import Image

    requests = [Request("free", p, p, i, 0, seed=40 + i) for i, p in enumerate(prompts)]
    sampling = Sampling(num_inference_steps=4, guidance_scale=3.0)
    draw(family, requests, out, sampling=sampling, resolution_px=64, about={}, progress=lambda done, total: None)
    return [np.asarray(Image.open(out / r.file), dtype=int) for r in requests]


def stock_images(pipe: StableDiffusionPipeline, prompts: list[str]) -> list[np.ndarray]:
    latents = torch.cat(
        [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(40 + i)) for i in range(len(prompts))]
    )
    drawn = pipe(prompts, latents=latents, num_inference_steps=4, guidance_scale=3.0).images
    return [np.asarray(image, dtype=int) for image in drawn]


def stock_pipeline(random_base: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(random_base, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = ["a red critter", "a photo of sks robot on a blue background"]


@pytest.mark.parametrize(
    "spec",
    [LoRA(rank=4, alpha=2.0), LoRA(rank=3, targets="all"), LoRA(rank=4, alpha=8.0, text_encoder=True)],
    ids=["alpha", "convolutions", "text"],
)
def test_stock_diffusers_loads_the_adapter_and_draws_the_same(
    family: Family, random_base: Path, tmp_path: Path, spec: LoRA
) -> None:
    plain = images(family, tmp_path / "base", PROMPTS)
    adapter = trained(family, spec)
    tuned = images(family, tmp_path / "tuned", PROMPTS)
    write_lora(adapter.state_dict(), tmp_path / "adapter.safetensors", {"family": "sd15"})
    pipe = stock_pipeline(random_base)
    for ours, theirs in zip(plain, stock_images(pipe, PROMPTS), strict=True):
        assert np.abs(ours - theirs).max() <= 1
    pipe.load_lora_weights(str(tmp_path / "adapter.safetensors"))
    for base, ours, theirs in zip(plain, tuned, stock_images(pipe, PROMPTS), strict=True):
        assert np.abs(ours - theirs).max() <= 1
        assert np.abs(ours - base).max() > 10


def test_adapter_file_reads_back_with_its_scale_folded_in(family: Family, tmp_path: Path) -> None:
    adapter = trained(family, LoRA(rank=16, alpha=4.0))
    state, path = adapter.state_dict(), tmp_path / "a.safetensors"
    write_lora(state, path, {"token": "sks"})
    lora = read_any_lora(path)
    read = lora.state_dict()
    assert lora.about == {"token": "sks"}
    for name in {key.rpartition(".")[0] for key in state}:
        wanted = state[f"{name}.lora_B"] @ state[f"{name}.lora_A"].flatten(1) * (4 / 16)
        assert float(read[f"{name}.alpha"]) == 16
        torch.testing.assert_close(
            read[f"{name}.lora_B"] @ read[f"{name}.lora_A"].flatten(1), wanted, rtol=0, atol=1e-6
        )
    with safe_open(str(path), "pt") as file:
        assert '"unet.lora_alpha": 16' in file.metadata()["lora_adapter_metadata"]


def test_files_that_are_no_lora_are_refused(family: Family, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="there is no such file"):
        read_any_lora(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="is not a readable .safetensors file"):
        read_any_lora(tmp_path / "torn.safetensors")
    save_file({"some.weight": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=r"first key that does not belong: some.weight"):
        read_any_lora(tmp_path / "other.safetensors")
    save_file({"unet.conv_in.lora_A.weight": torch.zeros(2, 3)}, str(tmp_path / "half.safetensors"))
    with pytest.raises(UserError, match="has an A and no B"):
        read_any_lora(tmp_path / "half.safetensors")


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler"])
def test_every_scheduler_keeps_the_bases_betas(family: Family, name: str) -> None:
    scheduler = make_scheduler(family.scheduler_config, name)
    torch.testing.assert_close(scheduler.alphas_cumprod, family.schedule.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
