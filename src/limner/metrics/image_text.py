"""An image-text encoder in transformers' format: CLIP by hub name or folder, or the one inside the embedded base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import UserError
from limner.metrics.encoder import Features, TextImageEncoder, hash_files
from limner.types import Pixels


class ImageText(TextImageEncoder):
    """A two-tower model with its own picture preprocessing; the tokenizer may lie elsewhere."""

    def __init__(
        self,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        name: str = "image_text",
        about: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = AutoModel.from_pretrained(source, use_safetensors=True)
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or source)
            self.processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{source}: cannot be loaded as an image-text encoder ({str(error).splitlines()[0]}).",
                "Name a folder or hub model that holds a CLIP-like model, its tokenizer and its preprocessor settings.",
            ) from error
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise UserError(
                f"{source}: holds a {type(model).__name__}, which does not read both pictures and text.",
                "Name a CLIP-like model (one with get_image_features and get_text_features).",
            )
        self.model = model.eval().requires_grad_(False).float().to(device)
        self.device = torch.device(device)
        self.name = name
        self.about = about or f"{type(model).__name__} from {source}: its image and text features share one space."
        self.identity = _identity(source)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Features:
        """Return the image features of each picture; `pixels` in [-1, 1]."""
        pictures = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        inputs = self.processor(list(pictures.numpy()), return_tensors="pt", input_data_format="channels_first")
        return _pooled(self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.device)))

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Features:
        """Return the text features of each prompt; what does not fit into the text tower's window is cut."""
        window = _text_window(self.model.config)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=window, return_tensors="pt"
        )
        inputs = {k: v.to(self.device) for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        return _pooled(self.model.get_text_features(**inputs))


def _pooled(output: object) -> Tensor:
    features = output if isinstance(output, Tensor) else output.pooler_output  # pyright: ignore
    return features.float().cpu()


def _text_window(config: object) -> int:
    return config.text_config.max_position_embeddings  # pyright: ignore


def _identity(source: str | Path) -> str:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), local_files_only=True, allow_patterns="*.safetensors"))
    return hash_files(sorted(folder.glob("*.safetensors")))
