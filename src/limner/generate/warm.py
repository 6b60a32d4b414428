"""Drawing the same way again and again: what does not change from picture to picture is made once and kept."""

from __future__ import annotations

from collections import OrderedDict
from inspect import signature

import torch
from PIL import Image
from torch import Tensor

from limner.families.decoder import Decoder
from limner.families.family import Family
from limner.generate.draw import Sampling, decode_soundly, make_scheduler
from limner.generate.faults import to_images
from limner.seeds import seed_of
from limner.types import Conditioning, Latents, Pixels

KEPT_TEXTS = 256
"""How many prompts' embeddings are kept: the newest."""


class Warm:
    """One model that draws one picture at a time, the same that `draw` draws alone in its batch.

    The sampler is made once, a prompt is read once, and the noise of a seed stays, so that a prompt that changes a
    little changes the picture a little.
    """

    def __init__(self, family: Family, sampling: Sampling, resolution_px: int, decoder: Decoder | None = None) -> None:
        self.family, self.sampling, self.decoder = family, sampling, decoder
        side = resolution_px // family.pixels_per_latent
        self._shape = (1, family.unet.config.in_channels, side, side)
        self._scheduler = make_scheduler(family.scheduler_config, sampling.scheduler)
        # noise that a sampler adds by itself is that of the pipeline, which is none
        self._more = {"eta": 0.0} if "eta" in signature(self._scheduler.step).parameters else {}
        self._texts: OrderedDict[str, Conditioning] = OrderedDict()

    def forget(self) -> None:
        """Read prompts anew: what reads them has changed."""
        self._texts.clear()

    def picture(self, prompt: str, seed: int = 0) -> Image.Image:
        """Draw a prompt from the noise of a seed."""
        return next(iter(to_images(self.pixels(prompt, seed))))

    @torch.no_grad()
    def pixels(self, prompt: str, seed: int = 0) -> Pixels:
        """Draw a prompt from the noise of a seed; one picture with values in [-1, 1]."""
        family, scheduler, told = self.family, self._scheduler, self._told(prompt)
        noise = torch.randn(self._shape[1:], generator=torch.Generator().manual_seed(seed))[None]
        fresh = torch.Generator().manual_seed(seed_of("steps", seed))  # for samplers that add noise
        scheduler.set_timesteps(self.sampling.num_inference_steps, device=family.device)
        x_t: Latents = noise.to(family.device, family.dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            predicted = self._predict(scheduler.scale_model_input(x_t, t), t, told)
            x_t = scheduler.step(predicted, t, x_t, generator=fresh, **self._more).prev_sample
        return decode_soundly(family, x_t, self.decoder)

    def _told(self, prompt: str) -> Conditioning:
        """Return what the UNet is told of a prompt, and with guidance before it what is to be avoided."""
        if prompt not in self._texts:
            own, other = self.family.encode_text([prompt, self.sampling.negative_prompt]), slice(None, None, -1)
            rows = list(range(len(own)))[other] if self.sampling.guidance_scale > 1 else [0]
            self._texts[prompt] = own.select(rows)
        self._texts.move_to_end(prompt)
        while len(self._texts) > KEPT_TEXTS:
            self._texts.popitem(last=False)
        return self._texts[prompt]

    def _predict(self, x_t: Latents, t: Tensor, told: Conditioning) -> Tensor:
        """Return the prediction, guided where there is guidance (arXiv:2207.12598)."""
        rows = len(told)
        predicted = self.family.predict(x_t.repeat(rows, 1, 1, 1), t.expand(rows), told)
        if rows == 1:
            return predicted
        untold, asked = predicted.chunk(2)
        return untold + self.sampling.guidance_scale * (asked - untold)
