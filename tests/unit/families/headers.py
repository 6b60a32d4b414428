"""Weights files of the real models' shapes that take no room: a header, and data that is a hole in the file."""

from __future__ import annotations

import json
import math
from pathlib import Path

SHAPES = dict[str, tuple[int, ...]]
UNET = "model.diffusion_model."
DIFFUSERS_LORA = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_"


def sparse(path: Path, shapes: SHAPES, metadata: dict[str, str] | None = None) -> Path:
    """Write a float16 .safetensors file of these shapes, all zero, with next to nothing on the disk."""
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * 2
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def checkpoint(cross_attention: int, parts: SHAPES, *, width: int = 320) -> SHAPES:
    """Return a checkpoint in the original layout: the layers that tell families apart, and as many others."""
    block = f"{UNET}input_blocks.4.1.transformer_blocks.0."
    return {
        f"{UNET}input_blocks.0.0.weight": (width, 4, 3, 3),
        f"{block}attn1.to_k.weight": (640, 640),
        f"{block}attn2.to_k.weight": (640, cross_attention),
        **{f"{UNET}output_blocks.{i}.0.in_layers.2.weight": (1280, 2560, 3, 3) for i in range(40)},
        **{f"{UNET}output_blocks.{i}.0.in_layers.2.bias": (1280,) for i in range(1000)},
        "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        **parts,
    }


CLIP_L = "transformer.text_model.embeddings.token_embedding.weight"
SD15 = checkpoint(768, {f"cond_stage_model.{CLIP_L}": (49408, 768)})
SD2 = checkpoint(1024, {"cond_stage_model.model.token_embedding.weight": (49408, 1024)})
SDXL = checkpoint(
    2048,
    {
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"conditioner.embedders.0.{CLIP_L}": (49408, 768),
        "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
    },
)
REFINER = checkpoint(
    1280,
    {
        f"{UNET}label_emb.0.0.weight": (1536, 2560),
        "conditioner.embedders.0.model.token_embedding.weight": (49408, 1280),
    },
    width=384,
)


def kohya_lora(width: int) -> SHAPES:
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    return {f"{layer}.alpha": (), f"{layer}.lora_down.weight": (4, width), f"{layer}.lora_up.weight": (640, 4)}


def diffusers_lora(width: int) -> SHAPES:
    return {f"{DIFFUSERS_LORA}A.weight": (4, width), f"{DIFFUSERS_LORA}B.weight": (320, 4)}


def vae(prefix: str = "") -> SHAPES:
    return {
        f"{prefix}encoder.conv_in.weight": (128, 3, 3, 3),
        f"{prefix}decoder.conv_in.weight": (512, 4, 3, 3),
        f"{prefix}quant_conv.weight": (8, 8, 1, 1),
    }
