"""How pleasing a picture is: one linear layer on CLIP's image features, as LAION's aesthetic predictor has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.errors import UserError
from limner.metrics.encoder import Features, ImageEncoder, hash_weights
from limner.metrics.preprocessing import Preprocessing, loading
from limner.types import Pixels


class Aesthetic(ImageEncoder):
    """One value a picture, about 1 to 10: the head `predictor` of a CLIP vision tower, on its normalised features."""

    def __init__(self, folder: Path, *, name: str, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        class WithPredictor(CLIPVisionModelWithProjection):
            def __init__(self, config: CLIPVisionConfig) -> None:
                super().__init__(config)
                self.predictor = nn.Linear(config.projection_dim, 1)
                self.post_init()

        with loading(folder, "a model of image quality"):
            loaded: Any = WithPredictor.from_pretrained(folder, output_loading_info=True)
            self.preprocessing = Preprocessing(folder)
        model, found = loaded
        if found["missing_keys"]:
            raise UserError(
                f"{folder}: is no model of image quality (it lacks {min(found['missing_keys'])}).",
                "Name one that reads text too, such as yuvalkirstain/PickScore_v1, or a CLIP vision tower with a "
                "linear predictor, such as shunk031/aesthetics-predictor-v1-vit-large-patch14.",
            )
        self.model = model.eval().requires_grad_(False).float().to(device)
        self.device = torch.device(device)
        self.name = name
        self.about = f"CLIP {name} with a linear layer that people's ratings of pictures gave."
        self.identity = hash_weights(folder)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Features:
        """Return the rating of each picture; `pixels` in [-1, 1]."""
        inputs = self.preprocessing.pixels(pixels).to(self.device)
        features = self.model(pixel_values=inputs).image_embeds
        return self.model.predictor(nn.functional.normalize(features, dim=-1)).float().cpu()
