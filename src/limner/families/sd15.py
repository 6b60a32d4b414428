"""Stable Diffusion 1.x: one CLIP text encoder, a UNet with cross-attention, an 8x (or smaller) VAE."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.families.family import Family
from limner.schedule import Schedule
from limner.types import Conditioning, Latents, Moments, Pixels, Timesteps


class SD15(Family):
    """The SD 1.x family around the components of a loaded diffusers pipeline; the embedded base is one of it."""

    kind: ClassVar[str] = "sd15"

    def __init__(self, name: str, components: dict[str, Any], identity: dict[str, str]) -> None:
        self.name, self.identity = name, identity
        self.unet, self.vae = components["unet"], components["vae"]
        self.tokenizer, self.text_encoder = components["tokenizer"], components["text_encoder"]
        self.text_encoders = (self.text_encoder,)
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False).eval()
        self.dtype, self.placeholders = self.unet.dtype, {}
        scheduler = components["scheduler"]
        self.schedule = Schedule(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)
        self.scheduler_config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        self.native_resolution_px = self.unet.config.sample_size * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def max_tokens(self) -> int:
        return self.text_encoder.config.max_position_embeddings - 2

    @torch.no_grad()
    def encode_pixels(self, pixels: Pixels) -> Moments:
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1).float().cpu()

    def scale_latents(self, latents: Latents) -> Latents:
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Latents) -> Pixels:
        unscaled = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return self.vae.decode(unscaled.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def encode_text(self, prompts: Sequence[str], *, learn: bool = False) -> Conditioning:
        """Return the hidden states of each prompt; a prompt past one window is encoded window by window and joined."""
        tokens = [self.tokens(prompt) for prompt in prompts]
        windows = max(1, *(-(-len(t) // self.max_tokens) for t in tokens))
        start, end, pad = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        parts = []
        for window in range(windows):
            pieces = [t[window * self.max_tokens : (window + 1) * self.max_tokens] for t in tokens]
            ids = [[start, *piece, end] + [pad] * (self.max_tokens - len(piece)) for piece in pieces]
            with torch.set_grad_enabled(learn), self.casting(self.text_encoder):
                parts.append(self.text_encoder(torch.tensor(ids, device=self.text_encoder.device))[0])
        return Conditioning(hidden=torch.cat(parts, dim=1).to(self.dtype))

    def predict(self, x_t: Latents, t: Timesteps, conditioning: Conditioning) -> Tensor:
        with self.casting(self.unet):
            return self.unet(x_t, t, encoder_hidden_states=conditioning.hidden).sample

    def pipeline(self, scheduler: Any) -> Any:
        from diffusers import StableDiffusionPipeline

        parts: dict[str, Any] = {
            "vae": self.vae, "text_encoder": self.text_encoder, "tokenizer": self.tokenizer, "unet": self.unet,
            "scheduler": scheduler, "safety_checker": None, "feature_extractor": None,
        }  # fmt: skip
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in split_at(text, self.placeholders):
            vectors = self.placeholders.get(part)
            ids += self._plain(part) if vectors is None else [-k - 1 for k in vectors]
        return ids

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def split_at(text: str, words: Collection[str]) -> list[str]:
    """Split a text at whole words: "a <cat> here" at {"<cat>"} gives ["a ", "<cat>", " here"]."""
    if not words:
        return [text]
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return [part for part in re.split(rf"(?<!\w)({longest_first})(?!\w)", text) if part]
