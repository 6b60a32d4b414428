"""cloneofsimo's LoRA files of 2022, which number layers in the order that the model of then listed them in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NAME = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
BLOCKS = [
    *(f"unet.down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)),
    *(f"unet.up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)),
    "unet.mid_block.attentions.0",
]  # diffusers 0.11 registered the middle block last
"""The attention blocks of SD 1.x and 2.x, in the order of `UNet2DConditionModel.modules()` of then."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
INSIDE = [*(f"attn1.{x}" for x in ATTENTION), "ff.net.0.proj", *(f"attn2.{x}" for x in ATTENTION)]
"""The layers of one transformer block that it trained, in the order of then: the feed-forward before `attn2`."""
UNET = [f"{block}.transformer_blocks.0.{layer}" for block in BLOCKS for layer in INSIDE]
TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")


def cloneofsimo_name(key: str, shapes: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
    """Return the layer and what the tensor is ("A" or "B") of a name such as "unet:12:up"; None for another name.

    It holds only for the set of layers that it trained by default, whose number and widths are checked.
    """
    found = _NAME.fullmatch(key)
    if not found:
        return None
    part, index, role = found[1], int(found[2]), "A" if found[3] == "down" else "B"
    count = sum(name.startswith(f"{part}:") and name.endswith(":up") for name in shapes)
    if part == "text_encoder":
        layer = f"text_encoder.encoder.layers.{index // len(TEXT)}.self_attn.{TEXT[index % len(TEXT)]}"
        return (layer, role) if count % len(TEXT) == 0 else None
    if count != len(UNET) or index >= count:
        return None
    place = index % len(INSIDE)
    gate = f"unet:{index - place + 4}"  # the feed-forward's first layer is 8 times wider out than in
    up, down = shapes.get(f"{gate}:up", (0,)), shapes.get(f"{gate}:down", (0, 1))
    return (UNET[index], role) if len(down) > 1 and up[0] == 8 * down[1] else None
