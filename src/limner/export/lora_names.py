"""What each program calls the layers of a LoRA, and what diffusers calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace

from limner.export.places import Places, translate, unet_places

LAYERS_PER_BLOCK = 2
"""Of every published UNet. Original names count layers, so a file for another UNet has to say its number."""
PREFIXES = {
    "lora_unet": "unet", "unet": "unet", "diffusion_model": "unet", "model.diffusion_model": "unet",
    "lora_te": "text_encoder", "lora_te1": "text_encoder", "text_encoder": "text_encoder", "clip_l": "text_encoder",
    "lora_te2": "text_encoder_2", "text_encoder_2": "text_encoder_2", "clip_g": "text_encoder_2",
    "lycoris": "", "base_model.model": "",
}  # fmt: skip
"""How the names of a part begin; after "" the name itself tells whose it is."""
_PREFIX = re.compile("|".join(re.escape(p) + r"(?=[._])" for p in sorted(PREFIXES, key=len, reverse=True)))
UNET_ROOTS = (
    "down_blocks", "mid_block", "up_blocks", "conv_in", "conv_norm_out", "conv_out", "time_embedding", "add_embedding",
)  # fmt: skip
ORIGINAL_ROOTS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
TEXT_ROOTS = ("encoder", "embeddings", "final_layer_norm", "text_projection")
COMPOUNDS = (
    *UNET_ROOTS, *ORIGINAL_ROOTS, *TEXT_ROOTS, "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v",
    "to_out", "time_emb_proj", "conv_shortcut", "linear_1", "linear_2", "group_norm", "in_layers", "out_layers",
    "emb_layers", "skip_connection", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "layer_norm1", "layer_norm2", "token_embedding", "position_embedding",
)  # fmt: skip
"""Words of module names that have an underscore of their own, where kohya's names have one for every dot."""
_WORD = re.compile(f"(?:{'|'.join(sorted(COMPOUNDS, key=len, reverse=True))})(?=_|$)|[^_]+")
ATTENTION_PROCESSOR = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""What old diffusers called a text encoder's layers, after the UNet's."""
SUFFIXES = {
    "A": (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora_A", ".lora.down.weight",
          "_lora.down.weight", ".lora_linear_layer.down.weight"),
    "magnitude": (".dora_scale",),
    "output_magnitude": (".lora_magnitude_vector", ".lora_magnitude_vector.weight",
                         ".lora_magnitude_vector.default.weight", ".magnitude"),
    "mid": (".lora_mid.weight",),
}  # fmt: skip
"""How the names of tensors end, by what the tensor is; all other ends are what it is called here."""
OWN_NAMES = (
    "alpha", "scalar", "diff", "diff_b", "w_norm", "b_norm", "hada_w1_a", "hada_w1_b", "hada_w2_a",
    "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "lokr_t1", "lokr_t2", "oft_blocks", "oft_diag", "rescale", "on_input", "a1.weight", "a2.weight", "b1.weight",
    "b2.weight",
)  # fmt: skip
_ROLES = (
    {suffix: role for role, suffixes in SUFFIXES.items() for suffix in suffixes}
    | {suffix.replace("down", "up").replace("_A", "_B"): "B" for suffix in SUFFIXES["A"]}
    | {f".{name}": name for name in OWN_NAMES}
)
_SUFFIX = re.compile(f"(?:{'|'.join(re.escape(s) for s in sorted(_ROLES, key=len, reverse=True))})$")

LAYOUTS = {
    r"^(unet|text_encoder):\d+:": "cloneofsimo",
    r"^base_model\.model\.": "peft",
    r"^lycoris_": "LyCORIS with diffusers' names",
    r"(processor\..*|[a-z]_)lora\.(down|up)\.weight$": "diffusers' attention processors",
    r"\.lora(_linear_layer)?\.(down|up)\.weight$": "diffusers before peft",
    r"^(lora_unet|lora_te\d?)_[^.]*\.(hada_|lokr_|diff|w_norm|b_norm|oft_|on_input|a1\.)": "LyCORIS",
    r"^lora_unet_(input_blocks|middle_block|output_blocks|time_embed_|label_emb|out_)": "kohya with original names",
    r"^(lora_unet|lora_te\d?)_": "kohya",
    r"^(clip_l|clip_g|lora_unet|lora_te\d?|bundle_emb|unet|text_encoder(_2)?)\..*lora_(down|up)\.weight": "OneTrainer",
    r"^(model\.)?diffusion_model\.": "original names with dots",
    r"\.(lora_[AB]|lora_magnitude_vector|hada_|lokr_)": "diffusers",
}
"""What people call a layout, by a pattern that one of its names has; the first that is found holds."""


def split_name(key: str, layers_per_block: int = LAYERS_PER_BLOCK) -> tuple[str, str] | None:
    """Return the layer of a tensor by its path in diffusers, such as "unet.conv_in", and what the tensor is.

    What it is: "A", "B", "mid", "alpha", "magnitude", "output_magnitude" (peft's, whatever its shape) or LyCORIS's
    name; None for a name that no layout has.
    """
    found = _SUFFIX.search(key)
    layer = canonical(key[: found.start()], layers_per_block) if found else None
    return (layer, _ROLES[found[0]]) if found and layer else None


def canonical(name: str, layers_per_block: int = LAYERS_PER_BLOCK) -> str | None:
    """Return a module's path in diffusers, with its part, whatever layout its name is of; None for a strange name."""
    part = ""
    while not part and (found := _PREFIX.match(name)):
        part, name = PREFIXES[found[0]], name[found.end() + 1 :]
    words = name.split(".") if "." in name else _WORD.findall(name)
    words = [word for word in words if word != "processor"]
    if words and words[0] in ORIGINAL_ROOTS and part in ("", "unet"):
        try:
            words = translate(".".join(words), _from_original(layers_per_block)).split(".")
        except ValueError:
            return None
    if words and words[0] in UNET_ROOTS and part in ("", "unet"):
        return ".".join(["unet", *words, *["0"] * (words[-1] == "to_out")])
    words = words[1:] if words and words[0] == "text_model" else words
    if not words or words[0] not in TEXT_ROOTS or part == "unet":
        return None
    part, words[-1] = part or "text_encoder", ATTENTION_PROCESSOR.get(words[-1], words[-1])
    # transformers 5.6 took `text_model` from the encoder without a projection, and left it in the other.
    inside = part == "text_encoder_2" and words[0] != "text_projection"
    return ".".join([part, *["text_model"] * inside, *words])


def with_text_model(layer: str) -> str:
    """Return a layer's path as every program but the newest transformers has it: inside a `text_model`."""
    part, _, path = layer.partition(".")
    if part == "unet" or path.startswith(("text_model.", "text_projection")):
        return layer
    return f"{part}.text_model.{path}"


def kohya_name(
    layer: str,
    prefixes: Mapping[str, str],
    *,
    original: bool,
    layers_per_block: int = LAYERS_PER_BLOCK,
    up_blocks: Sequence[str] = (),
) -> str:
    """Return what kohya's tools call a layer: its part's prefix, and an underscore for each dot of its path.

    `original`: the UNet's layers have the names of the original layout, for whose blocks `up_blocks` (the class of
    each block on the way up) is needed.
    """
    part, _, path = with_text_model(layer).partition(".")
    if original and part == "unet":
        path = translate(
            path, unet_places(SimpleNamespace(layers_per_block=layers_per_block, up_block_types=up_blocks))
        )
    return f"{prefixes[part]}_{path.replace('.', '_')}"


def layout_of(keys: Sequence[str]) -> str | None:
    """Return what people call the layout that a LoRA's tensors are named in, None where they are in none."""
    return next((name for pattern, name in LAYOUTS.items() if any(map(re.compile(pattern).search, keys))), None)


@cache
def _from_original(layers_per_block: int) -> Places:
    """Return the original name of every place that a UNet may have, to diffusers' name."""
    places: Places = {}
    for up_block in ("UpBlock2D", "CrossAttnUpBlock2D"):  # their upsamplers are in different places
        config = SimpleNamespace(layers_per_block=layers_per_block, up_block_types=[up_block] * 4)
        places |= {original: own for own, original in unet_places(config).items()}
    return places
