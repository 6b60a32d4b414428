"""An image-text encoder in transformers' format: CLIP from a folder, or the one inside the embedded base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import UserError
from limner.metrics.encoder import Features, Masks, PatchEncoder, Patches, TextImageEncoder, hash_weights
from limner.metrics.preprocessing import Preprocessing, loading, patches_of
from limner.types import Pixels


class ImageText(TextImageEncoder, PatchEncoder):
    """A two-tower model with its own picture preprocessing; the tokenizer may lie elsewhere."""

    def __init__(
        self,
        source: Path,
        *,
        tokenizer: Path | None = None,
        name: str = "image_text",
        about: str = "",
        is_independent: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        with loading(source, "an image-text encoder"):
            model = AutoModel.from_pretrained(source)
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or source)
            self.preprocessing = Preprocessing(source)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise UserError(
                f"{source}: holds a {type(model).__name__}, which does not read both pictures and text.",
                "Name a CLIP-like model (one with get_image_features and get_text_features).",
            )
        self.model = model.eval().requires_grad_(False).float().to(device)
        self.device = torch.device(device)
        self.name = name
        self.about = about or f"{type(model).__name__} {name}: its image and text features share one space."
        self.identity = hash_weights(source)
        self.is_independent = is_independent

    def __call__(self, pixels: Pixels) -> Features:
        """Return the image features of each picture; `pixels` in [-1, 1]."""
        return _pooled(self._look(self.preprocessing.pixels(pixels)))

    def see(self, pixels: Pixels) -> tuple[Features, Patches]:
        """Return the image features of each picture, and the vision tower's last features of its patches."""
        inputs = self.preprocessing.pixels(pixels)
        output = self._look(inputs)
        return _pooled(output), patches_of(output.last_hidden_state, inputs, self._patch_px)

    def cells(self, masks: Masks) -> Float[Tensor, "rows patches"]:
        """Return the share of each patch that lies inside."""
        return self.preprocessing.cells(masks, self._patch_px)

    @property
    def _patch_px(self) -> int:
        return self.model.config.vision_config.patch_size

    @torch.inference_mode()
    def _look(self, inputs: Tensor) -> Any:
        return self.model.get_image_features(pixel_values=inputs.to(self.device))

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Features:
        """Return the text features of each prompt; what does not fit into the text tower's window is cut."""
        window = _text_window(self.model.config)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=window, return_tensors="pt"
        )
        inputs = {k: v.to(self.device) for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        return _pooled(self.model.get_text_features(**inputs))


def _pooled(output: Any) -> Features:
    return (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()


def _text_window(config: Any) -> int:
    return config.text_config.max_position_embeddings
