"""Stable Diffusion XL (arXiv:2307.01952): the base with two text encoders, and the refiner with the second alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.families.family import Family, ReadPart
from limner.types import Conditioning, Latents, Timesteps

AESTHETIC_SCORE = 6.0
"""How good a picture the refiner is told to look at, on its own scale from 1 to 10; it was trained on good ones."""


class SDXL(Family):
    """The SDXL family around the components of a loaded diffusers pipeline: base or refiner."""

    before_last: ClassVar[bool] = True

    def __init__(self, name: str, components: Mapping[str, Any], read: ReadPart, unread: Collection[str] = ()) -> None:
        super().__init__(name, components, read, unread)
        self.is_refiner = "text_encoder" not in components
        self.kind = "sdxl-refiner" if self.is_refiner else "sdxl"

    def encode_text(self, prompts: Sequence[str], *, learn: bool = False) -> Conditioning:
        """Return hidden states of all encoders side by side, the pooled text, and the sizes of an uncropped picture.

        The base learned that no prompt is zeros, the refiner that it is the text "".
        """
        hidden, pooled = zip(*self.read(prompts, learn=learn), strict=True)
        told = Conditioning(torch.cat(hidden, dim=-1), pooled[-1], self._time_ids(len(prompts)))
        if self.is_refiner or all(prompts):
            return told
        said = torch.tensor([bool(prompt) for prompt in prompts], device=told.hidden.device)
        assert told.pooled is not None, "the last encoder has a projection"
        return Conditioning(told.hidden * said[:, None, None], told.pooled * said[:, None], told.time_ids)

    def _time_ids(self, rows: int) -> Tensor:
        """Return original height and width, top and left of the crop, and the target size or the aesthetic score."""
        side = float(self.native_resolution_px)
        ids = [side, side, 0.0, 0.0, *([AESTHETIC_SCORE] if self.is_refiner else [side, side])]
        return torch.tensor([ids] * rows, device=self.device)

    def predict(self, x_t: Latents, t: Timesteps, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        with self.casting(self.unet):
            return self.unet(x_t, t, encoder_hidden_states=conditioning.hidden, added_cond_kwargs=added).sample

    def pipeline(self, scheduler: Any) -> Any:
        from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

        parts: dict[str, Any] = {"vae": self.vae, "unet": self.unet, "scheduler": scheduler}
        for suffix in ("", "_2"):
            encoder = self.encoders.get(f"text_encoder{suffix}")
            parts[f"text_encoder{suffix}"] = encoder.model if encoder else None
            parts[f"tokenizer{suffix}"] = encoder.tokenizer if encoder else None
        if self.is_refiner:
            pipe: Any = StableDiffusionXLImg2ImgPipeline(
                **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False
            )
        else:
            pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def told(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {
            "prompt_embeds": prompts.hidden, "pooled_prompt_embeds": prompts.pooled,
            "negative_prompt_embeds": negative.hidden, "negative_pooled_prompt_embeds": negative.pooled,
        }  # fmt: skip
