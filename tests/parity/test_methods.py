"""Loss and gradients of every method equal those computed with diffusers' and transformers' own parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.textual_inversion import TextualInversion
from limner.families.family import Family
from limner.objectives import Denoising
from limner.seeds import generator
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.types import Batch

PLAIN = Denoising(snr_gamma=0.0)
CAPTIONS = ("a photo of <it> critter", "a red robot")


class Two:
    """One instance row and one class row, always the same."""

    def __init__(self, family: Family) -> None:
        self.moments = torch.stack([torch.randn(2, 4, 16, 16), torch.full((2, 4, 16, 16), 0.1)], dim=1)
        self.conditioning = family.encode_text(list(CAPTIONS))

    def batch(self, step: int, *, seed: int) -> Batch:
        return Batch(("a", "b"), self.moments, self.conditioning, torch.tensor([1.0, 0.5]), (False, True),
                     captions=CAPTIONS)  # fmt: skip


def drawn(source: Two, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_0, noise and timesteps as the loop draws them in its first step."""
    draws = generator(5, "step", 0)
    mean, std = source.moments.unbind(1)
    x_0 = (mean + std * torch.randn(mean.shape, generator=draws)) * scaling
    return x_0, torch.randn(x_0.shape, generator=draws), torch.randint(1000, (2,), generator=draws)


def reference_loss(pipe: StableDiffusionPipeline, source: Two, hidden: Tensor) -> Tensor:
    """Compute the loss with diffusers alone: v-prediction, instance loss + half of the class loss."""
    x_0, noise, t = drawn(source, pipe.vae.config.scaling_factor)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    made = pipe.unet(scheduler.add_noise(x_0, noise, t), t, hidden).sample
    target = scheduler.get_velocity(x_0, noise, t)
    return F.mse_loss(made[:1], target[:1]) + 0.5 * F.mse_loss(made[1:], target[1:])


def first_step(family: Family, spec: Full | TextualInversion, source: Two) -> tuple[float, dict[str, Tensor]]:
    adapter = spec.attach(family, [SlotSettings(seed=0, words={"<it>": "robot"})])
    slot = Slot("s", source, seed=5, steps=1, learning_rate=1e-3)
    training = Training(family, adapter, [slot], objective=PLAIN, optimizer=AdamW(max_grad_norm=0.0))
    step = training.step()
    gradients = {n: p.grad.clone() for n, p in adapter.slot_parameters(0).items() if p.grad is not None}
    return step.loss, gradients


@pytest.fixture
def pipe(random_base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(random_base, safety_checker=None, requires_safety_checker=False)


def hidden_of(pipe: StableDiffusionPipeline, captions: tuple[str, ...]) -> Tensor:
    ids = pipe.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0]


def test_dreambooth_with_the_text_encoder(family: Family, pipe: StableDiffusionPipeline) -> None:
    source = Two(family)
    loss, gradients = first_step(family, Full(text_encoder=True), source)
    for module in (pipe.unet, pipe.text_encoder):
        module.requires_grad_(True)
    expected = reference_loss(pipe, source, hidden_of(pipe, CAPTIONS))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    named = {f"{root}.{n}": p for root, m in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder))
             for n, p in m.named_parameters() if p.grad is not None}  # fmt: skip
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_textual_inversion(family: Family, pipe: StableDiffusionPipeline) -> None:
    """The reference adds a row to the token table, as diffusers does, and reads that row's gradient."""
    source = Two(family)
    loss, gradients = first_step(family, TextualInversion(vectors=1), source)
    pipe.tokenizer.add_tokens("<it>")
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = pipe.text_encoder.get_input_embeddings().weight
    (robot,) = pipe.tokenizer("robot", add_special_tokens=False).input_ids
    with torch.no_grad():
        table[-1] = table[robot]
    expected = reference_loss(pipe, source, hidden_of(pipe, CAPTIONS))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    (name,) = gradients
    assert name == "words.text_encoder.<it>"
    torch.testing.assert_close(gradients[name][0], table.grad[-1], rtol=1e-4, atol=1e-6)
