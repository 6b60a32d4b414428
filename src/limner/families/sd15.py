"""Stable Diffusion 1.x: one CLIP text encoder, a UNet with cross-attention, an 8x (or smaller) VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from limner.families.family import Family
from limner.types import Conditioning, Latents, Timesteps


class SD15(Family):
    """The SD 1.x family around the components of a loaded diffusers pipeline; the embedded base is one of it."""

    kind = "sd15"
    before_last: ClassVar[bool] = False

    def encode_text(self, prompts: Sequence[str], *, learn: bool = False) -> Conditioning:
        ((hidden, _),) = self.read(prompts, learn=learn)
        return Conditioning(hidden)

    def predict(self, x_t: Latents, t: Timesteps, conditioning: Conditioning) -> Tensor:
        with self.casting(self.unet):
            return self.unet(x_t, t, encoder_hidden_states=conditioning.hidden).sample

    def pipeline(self, scheduler: Any) -> Any:
        from diffusers import StableDiffusionPipeline

        (encoder,) = self.encoders.values()
        parts: dict[str, Any] = {
            "vae": self.vae, "text_encoder": encoder.model, "tokenizer": encoder.tokenizer, "unet": self.unet,
            "scheduler": scheduler, "safety_checker": None, "feature_extractor": None,
        }  # fmt: skip
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def told(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": prompts.hidden, "negative_prompt_embeds": negative.hidden}
