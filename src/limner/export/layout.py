"""What published files call a model's tensors: with `text_model.`, and in the original Stable Diffusion layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limner.export.places import PLACES, translate
from limner.families.recognise import FAMILIES
from limner.families.single_file import OPEN_CLIP

OPEN_CLIP_NAMES = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.": ".attn.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def published_weights(module: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's weights in `dtype` under their published names, after checking that they are all its own.

    transformers 5.6 took `text_model.` from CLIPTextModel's names; older programs need it, newer ones read both.
    """
    with torch.device("meta"):
        fresh = module.from_config(module.config) if hasattr(module, "from_config") else type(module)(module.config)
    own, wanted = module.state_dict(), fresh.state_dict()
    strange = sorted(n for n in own.keys() | wanted.keys() if n not in own or n not in wanted)
    if strange:
        raise ValueError(f"{type(module).__name__}: {strange[0]} is not as in a plain model: is an adapter inside?")
    text = type(module).__name__.startswith("CLIPText")
    return {_text_name(n) if text else n: tensor.detach().to(dtype) for n, tensor in own.items()}


def _text_name(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def original_weights(family: str, part: str, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return one part ("unet", "vae", "text_encoder" ...) of a model as a single-file checkpoint holds it."""
    prefix, published = FAMILIES[family].prefixes[part], published_weights(module, dtype)
    if prefix.endswith(OPEN_CLIP):
        return {prefix + name: tensor for name, tensor in _open_clip(published).items()}
    table = PLACES[part](module.config)
    weights = {}
    for name, tensor in published.items():
        original = prefix + translate(name, table)
        # The original VAE attends by 1x1 convolutions, diffusers by linear layers.
        weights[original] = tensor[:, :, None, None] if ".attn_1." in original and tensor.ndim == 2 else tensor
    assert len(weights) == len(module.state_dict()), f"{part}: two tensors of one name"
    return weights


def _open_clip(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a text encoder's weights under OpenCLIP's names: queries, keys and values of a layer are one matrix."""
    weights: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if ".q_proj." in name:
            joined = torch.cat([published[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"])
            name, tensor = name.replace(".self_attn.q_proj.", ".self_attn.in_proj_"), joined
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        elif name == "text_projection.weight":
            tensor = tensor.T.contiguous()  # OpenCLIP multiplies from the other side
        for ours, theirs in OPEN_CLIP_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    return weights
