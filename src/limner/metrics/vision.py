"""A vision transformer in transformers' format, such as DINO or DINOv2, from a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import UserError
from limner.metrics.encoder import Features, Masks, PatchEncoder, Patches, hash_weights
from limner.metrics.preprocessing import Preprocessing, loading, patches_of
from limner.types import Pixels


class Vision(PatchEncoder):
    """The CLS embedding of a vision transformer, and the features of its patches."""

    def __init__(self, folder: Path, *, name: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel

        with loading(folder, "an image encoder"):
            model = AutoModel.from_pretrained(folder)
            self.preprocessing = Preprocessing(folder)
        patch_px = getattr(model.config, "patch_size", None)
        if not isinstance(patch_px, int):
            raise UserError(
                f"{folder}: holds a {type(model).__name__}, which is no vision transformer.",
                "Name one whose features begin with a CLS token, such as facebook/dinov2-small.",
            )
        self.patch_px = patch_px
        self.model = model.eval().requires_grad_(False).float().to(device)
        self.device = torch.device(device)
        self.name = name
        self.about = (
            f"{type(model).__name__} {name}: its CLS embedding. It never saw the base nor its training pictures."
        )
        self.identity = hash_weights(folder)

    def __call__(self, pixels: Pixels) -> Features:
        """Return the CLS embedding of each picture; `pixels` in [-1, 1]."""
        return self.see(pixels)[0]

    @torch.inference_mode()
    def see(self, pixels: Pixels) -> tuple[Features, Patches]:
        """Return the CLS embedding of each picture and the last features of its patches."""
        inputs = self.preprocessing.pixels(pixels)
        tokens = self.model(pixel_values=inputs.to(self.device)).last_hidden_state
        return tokens[:, 0].float().cpu(), patches_of(tokens, inputs, self.patch_px)

    def cells(self, masks: Masks) -> Float[Tensor, "rows patches"]:
        """Return the share of each patch that lies inside."""
        return self.preprocessing.cells(masks, self.patch_px)
