"""Views of large pictures for the XL pair: scaled, cropped or degraded, and told what was done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from pretraining import dataset
from pretraining.progress import autocast, device, write_atomically

LARGE_PX, SIDE_PX, SMALLEST_PX = 128, 96, 24
BEST_SCORE, CLEAN_SCORE, WORST_SCORE = 10.0, 6.0, 2.0
View = Callable[[Tensor], tuple[Tensor, list[float]]]


@dataclass(frozen=True)
class Views:
    """What the UNets of the pair train on: latent means, their one posterior deviation, what is told."""

    latents: Tensor  # (n, 4, 24, 24)
    deviation: Tensor  # (4,)
    time_ids: Tensor  # (n, 6), of the refiner (n, 5)


def resized(pixels: Tensor, side_px: int) -> Tensor:
    """Return pictures (batch, 3, height, width) of another side."""
    made = functional.interpolate(pixels, size=(side_px, side_px), mode="bicubic", antialias=True)
    return made.clamp(-1, 1)


def sized_or_cropped(large: Tensor) -> tuple[Tensor, list[float]]:
    """Return one picture of 96 px, and its original height and width, the crop's top and left, the target size twice.

    A third is whole and sharp, a third was smaller and is scaled up, a third is cut out of the large picture.
    """
    kind = torch.rand(())
    if kind < 1 / 3:
        side = int(torch.randint(SMALLEST_PX, SIDE_PX, ()))
        return resized(resized(large, side), SIDE_PX), [side, side, 0, 0, SIDE_PX, SIDE_PX]
    if kind < 2 / 3:
        top, left = torch.randint(LARGE_PX - SIDE_PX + 1, (2,)).tolist()
        cut = large[..., top : top + SIDE_PX, left : left + SIDE_PX]
        return cut, [SIDE_PX, SIDE_PX, top, left, SIDE_PX, SIDE_PX]
    return resized(large, SIDE_PX), [SIDE_PX, SIDE_PX, 0, 0, SIDE_PX, SIDE_PX]


def degraded(picture: Tensor, strength: float) -> Tensor:
    """Return a picture blurred and noisy; `strength` in [0, 1], 0 leaves it as it is."""
    small = round(SIDE_PX * (1 - 0.7 * strength))
    noise = 0.2 * strength * torch.randn_like(picture)
    return (resized(resized(picture, small), SIDE_PX) + noise).clamp(-1, 1)


def scored(large: Tensor) -> tuple[Tensor, list[float]]:
    """Return one picture of 96 px, and its original size, no crop, and how good it is.

    Half are clean: 6 to 10. The others fall to 2 with their degradation.
    """
    picture, score = resized(large, SIDE_PX), float(torch.empty(()).uniform_(CLEAN_SCORE, BEST_SCORE))
    if torch.rand(()) < 0.5:
        strength = float(torch.rand(()))
        picture = degraded(picture, strength)
        score = CLEAN_SCORE - (CLEAN_SCORE - WORST_SCORE) * strength
    return picture, [SIDE_PX, SIDE_PX, 0, 0, score]


def _batches(pictures: dataset.Pictures, view: View) -> Iterator[tuple[Tensor, Tensor]]:
    for some in torch.arange(len(pictures)).split(64):
        seen = [view(large[None]) for large in pictures.batch(some)]
        yield torch.cat([pixels for pixels, _ in seen]), torch.tensor([told for _, told in seen], dtype=torch.float32)


@torch.no_grad()
def load(file: Path, pictures: dataset.Pictures, vae: AutoencoderKL, view: View) -> Views:
    """Return the cached views in `file`, one of each picture, making them where it is missing."""
    if not file.exists():
        torch.manual_seed(0)
        vae = vae.to(device())
        means, told = [], []
        for pixels, time_ids in _batches(pictures, view):
            with autocast():
                posterior = vae.encode(pixels.to(device())).latent_dist
            means.append(posterior.mean.half().cpu())
            told.append(time_ids)
        deviation = posterior.std[0, :, 0, 0].float().cpu()
        made = {"latents": torch.cat(means), "time_ids": torch.cat(told), "deviation": deviation}
        write_atomically(file, made)
    return Views(**torch.load(file, weights_only=True))
