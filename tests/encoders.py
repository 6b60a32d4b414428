"""Published kinds of encoders, very small and with random weights, saved to folders as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP_VISION = CLIPVisionConfig(**SMALL, image_size=32, patch_size=8, projection_dim=8)


def make_dino(folder: Path, *, safetensors: bool = True) -> Path:
    """Save a ViT as facebook/dino-vits16 is: 4 x 4 patches of 8 px, pictures squashed to a square."""
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False)
    model.save_pretrained(folder)
    if not safetensors:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make_dinov2(folder: Path) -> Path:
    """Save a DINOv2 as facebook/dinov2-small is: resized by its shorter side, then cropped."""
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**{**SMALL, "intermediate_size": None}, image_size=28, patch_size=7)).save_pretrained(
        folder
    )
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    """Save a CLIP with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=12).save_pretrained(folder)
    _save_clip_processor(folder)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        **SMALL, vocab_size=len(vocabulary), max_position_embeddings=12, bos_token_id=52, eos_token_id=53
    )
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=CLIP_VISION.to_dict(), projection_dim=8)
    ).save_pretrained(folder)
    return folder


def make_aesthetic(folder: Path, *, head: bool = True) -> Path:
    """Save a CLIP vision tower with LAION's linear head, as its copies on the hub have it."""
    torch.manual_seed(2)
    CLIPVisionModelWithProjection(CLIP_VISION).save_pretrained(folder)
    if head:
        weights = load_file(folder / "model.safetensors")
        weights |= {"predictor.weight": torch.randn(1, 8), "predictor.bias": torch.tensor([5.0])}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _save_clip_processor(folder)
    return folder


def _save_clip_processor(folder: Path) -> None:
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
