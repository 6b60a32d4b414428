"""Where the modules of diffusers are in the original Stable Diffusion layout, by their configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Places = dict[str, str]
"""Path of a module in diffusers -> its path in the original layout; what is inside keeps its name."""

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def translate(name: str, places: Places) -> str:
    """Replace the longest beginning of a name that has a place."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        place = places.get(".".join(words[:end]))
        if place is not None:
            return ".".join([place, *words[end:]])
    raise ValueError(f"{name}: has no place in the original Stable Diffusion layout")


def unet_places(config: Any) -> Places:
    """Number the blocks in one row: a level takes one number per layer and one for its down- or upsampler."""
    layers = config.layers_per_block
    places = dict(UNET_ENDS)
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for level, up_block in enumerate(config.up_block_types):
        first = level * (layers + 1)
        for layer in range(layers):  # input block 0 is conv_in
            resnets[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{first + layer + 1}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{first + layer + 1}.1"
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers + 1}.0.op"
        for layer in range(layers + 1):
            resnets[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{first + layer}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{first + layer}.1"
        behind = 2 if "Attn" in up_block else 1
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{behind}.conv"
    return places | _inside(resnets, UNET_RESNET)


def _vae_places(config: Any) -> Places:
    """Number the decoder's levels from the finest, as the original does; diffusers begins with the coarsest."""
    layers, levels = config.layers_per_block, len(config.block_out_channels)
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    resnets: Places = {}
    for coder in ("encoder", "decoder"):
        places |= _inside({coder: coder}, VAE_ENDS)
        places |= _inside({f"{coder}.mid_block.attentions.0": f"{coder}.mid.attn_1"}, VAE_ATTENTION)
        resnets |= {f"{coder}.mid_block.resnets.{i}": f"{coder}.mid.block_{i + 1}" for i in range(2)}
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        resnets |= {f"encoder.down_blocks.{level}.resnets.{i}": f"{down}.block.{i}" for i in range(layers)}
        resnets |= {f"decoder.up_blocks.{level}.resnets.{i}": f"{up}.block.{i}" for i in range(layers + 1)}
        places[f"encoder.down_blocks.{level}.downsamplers.0"] = f"{down}.downsample"
        places[f"decoder.up_blocks.{level}.upsamplers.0"] = f"{up}.upsample"
    return places | _inside(resnets, VAE_RESNET)


def _inside(modules: Places, parts: Places) -> Places:
    return {f"{a}.{x}": f"{b}.{y}" for a, b in modules.items() for x, y in parts.items()}


PLACES: dict[str, Callable[[Any], Places]] = {
    "unet": unet_places,
    "vae": _vae_places,
    "text_encoder": lambda _config: {"text_model": "text_model"},
}
"""Where the modules of each part are in the original layout; the same in every family."""
