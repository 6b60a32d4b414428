"""SDXL's classes, very small, with random weights: the base and the refiner as diffusers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.random_base import make_vae_and_scheduler


def make_random_xl(folder: Path, *, refiner: bool = False, tokenizer: Path) -> Path:
    """Write a model of 64-pixel pictures and 16 x 16 latents that predicts v; return its folder."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(1 if refiner else 0)
    first = CLIPTokenizer.from_pretrained(tokenizer)
    second = CLIPTokenizer.from_pretrained(tokenizer, pad_token="!")
    common: dict[str, Any] = {
        "vocab_size": len(first), "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "bos_token_id": first.bos_token_id, "eos_token_id": first.eos_token_id, "pad_token_id": first.pad_token_id,
    }  # fmt: skip
    one = CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=32, **common))
    two = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=24, intermediate_size=48, projection_dim=24, hidden_act="gelu", **common)
    )
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=24 if refiner else 40,
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 8 * (5 if refiner else 6),
    )  # fmt: skip
    vae, scheduler = make_vae_and_scheduler(scaling_factor=0.13025)
    parts: dict[str, Any] = {
        "vae": vae, "unet": unet, "scheduler": scheduler, "text_encoder_2": two, "tokenizer_2": second,
        "text_encoder": None if refiner else one, "tokenizer": None if refiner else first,
    }  # fmt: skip
    if refiner:
        pipe: Any = StableDiffusionXLImg2ImgPipeline(
            **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False
        )
    else:
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.save_pretrained(folder)
    return folder
