"""A very small family with random weights in diffusers' own classes, and folders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from limner.families.family import Family
from limner.schedule import Schedule
from limner.types import Conditioning, Latents, Moments, Pixels, Timesteps

WINDOW = 12


class SmallFamily(Family):
    """Random weights: 4 pixels per latent, one token per word, long prompts in several windows."""

    kind, before_last = "small", False
    native_resolution_px = 32

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.name = f"small-{seed}"
        self.vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            layers_per_block=1,
        ).eval()
        config = CLIPTextConfig(
            vocab_size=512,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=WINDOW + 2,
            bos_token_id=510,
            eos_token_id=511,
        )
        self.text_encoder = CLIPTextModel(config).eval()
        self.unet = UNet2DConditionModel(
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            norm_num_groups=4,
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
        ).eval()
        self.schedule = Schedule(torch.linspace(0.99, 0.01, 1000), "epsilon")
        self.scheduler_config = {}
        self.dtype = torch.float32
        self.identity = {"unet": f"unet{seed}", "vae": f"vae{seed}", "text": f"text{seed}"}
        self.pixels_encoded = 0
        self.prompts_encoded: list[str] = []

    @property
    def pixels_per_latent(self) -> int:
        return 4

    @torch.no_grad()
    def encode_pixels(self, pixels: Pixels) -> Moments:
        self.pixels_encoded += len(pixels)
        posterior = self.vae.encode(pixels).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1)

    def scale_latents(self, latents: Latents) -> Latents:
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Latents) -> Pixels:
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], *, learn: bool = False) -> Conditioning:
        self.prompts_encoded += prompts
        ids_of = [self.tokens(prompt) for prompt in prompts]
        windows = max(1, *(-(-len(ids) // WINDOW) for ids in ids_of))
        hidden = []
        for window in range(windows):
            ids = torch.full((len(prompts), WINDOW + 2), 511)
            for row, all_ids in enumerate(ids_of):
                piece = all_ids[window * WINDOW : (window + 1) * WINDOW]
                ids[row, 1 : len(piece) + 1] = torch.tensor(piece, dtype=torch.long)
            hidden.append(self.text_encoder(ids)[0])
        return Conditioning(torch.cat(hidden, dim=1))

    def predict(self, x_t: Latents, t: Timesteps, conditioning: Conditioning) -> Tensor:
        return self.unet(x_t, t, encoder_hidden_states=conditioning.hidden).sample

    def pipeline(self, scheduler: Any) -> StableDiffusionPipeline:
        raise NotImplementedError("preparing pictures draws none")

    def told(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        raise NotImplementedError("preparing pictures draws none")

    def tokens(self, text: str) -> list[int]:
        return [sum(map(ord, word)) % 500 for word in text.split()]

    @property
    def max_tokens(self) -> int:
        return WINDOW


@pytest.fixture(scope="session")
def small() -> SmallFamily:
    return SmallFamily()


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return a picture with smooth structure that differs by seed."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a folder of n pictures."""

    def make(n: int, name: str = "pictures", size: tuple[int, int] = (40, 40), first: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for i in range(first, first + n):
            picture(i, size).save(folder / f"{i:03d}.png")
        return folder

    return make
