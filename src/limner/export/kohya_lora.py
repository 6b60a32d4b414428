"""The LoRA file as kohya's tools, A1111, Forge and ComfyUI name it; LoHa, LoKr and DoRA as LyCORIS does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner.adapters.deltas import Array, Delta, DoRA, LowRank
from limner.export.lora_check import verify
from limner.export.lora_names import LAYERS_PER_BLOCK, kohya_name
from limner.export.modelspec import modelspec
from limner.export.tensors import header, write_tensors
from limner.families.recognise import FAMILIES, up_blocks

NETWORKS = {
    "LoRA": ("networks.lora", ""), "DoRA": ("lycoris.kohya", "lora"), "LoHa": ("lycoris.kohya", "loha"),
    "LoKr": ("lycoris.kohya", "lokr"), "difference": ("lycoris.kohya", "full"), "OFT": ("lycoris.kohya", "diag-oft"),
    "BOFT": ("lycoris.kohya", "boft"), "(IA)^3": ("lycoris.kohya", "ia3"), "GLoRA": ("lycoris.kohya", "glora"),
}  # fmt: skip
"""What would have trained each kind there: `ss_network_module`, and LyCORIS's name of its algorithm."""


def write_kohya(
    layers: Mapping[str, Delta],
    path: Path,
    about: Mapping[str, Any],
    *,
    biases: Mapping[str, Array] | None = None,
    dtype: torch.dtype = torch.float32,
    network: str = "kohya",
) -> None:
    """Write a LoRA by kohya's names, with one alpha per layer, and check what was written.

    `about` names the family, whose names they are, and what the header says (base, token, recipe ...). `network`:
    whose network the header calls a plain LoRA, "kohya" or "lycoris"; any other kind is LyCORIS's alone.
    """
    known, biases = FAMILIES[about["family"]], biases or {}
    names = {
        layer: kohya_name(
            layer, known.kohya.prefixes, original=known.kohya.original_names, up_blocks=up_blocks(about["family"]),
            layers_per_block=int(about.get("layers_per_block", LAYERS_PER_BLOCK)),
        )
        for layer in layers
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for layer, change in layers.items():
        for role, array in balanced(change, dtype).tensors().items():
            kept = torch.float32 if role in ("alpha", "on_input") else dtype  # a rounded alpha is another strength
            tensors[f"{names[layer]}.{role}"] = torch.from_numpy(np.array(array)).to(kept)
        if layer in biases:
            role = "b_norm" if "w_norm" in change.tensors() else "diff_b"
            tensors[f"{names[layer]}.{role}"] = torch.from_numpy(biases[layer]).to(dtype)
    spec = modelspec(about, adapter="lora")
    write_tensors(path, tensors, header(about, spec) | _training(layers, about, path.stem, network))
    verify(path, layers, biases, dtype=dtype)


def balanced(change: Delta, dtype: torch.dtype) -> Delta:
    """Return the same change with factors of like size where float16 would round one of them to nothing.

    What moves from one to the other is a power of two, so no digit is lost.
    """
    if isinstance(change, DoRA):
        return DoRA(balanced(change.change, dtype), change.magnitude, change.axis)
    if not isinstance(change, LowRank) or dtype != torch.float16:
        return change
    sizes = float(np.abs(change.A).max()), float(np.abs(change.B).max())
    if not all(sizes):
        return change
    move = np.float32(2.0 ** round(np.log2(sizes[0] / sizes[1]) / 2))
    return LowRank(change.A / move, change.B * move, change.alpha)


def _training(layers: Mapping[str, Delta], about: Mapping[str, Any], name: str, network: str) -> dict[str, str]:
    """Return kohya's own fields, as far as there is an answer: A1111 takes the family and the words from them."""
    kohya = FAMILIES[about["family"]].kohya
    kind = Counter(change.kind for change in layers.values()).most_common(1)[0][0]
    module, algorithm = NETWORKS["DoRA" if kind == "LoRA" and network == "lycoris" else kind]
    ranks = {change.rank for change in layers.values()}
    alphas = {round(change.scale * change.rank, 6) for change in layers.values()}
    recipe, token, side = about.get("recipe") or {}, about.get("token"), about.get("resolution_px")
    arguments = {"algo": algorithm} if algorithm else {}
    arguments |= {"dora_wd": "True", "wd_on_output": "True"} if any(c.kind == "DoRA" for c in layers.values()) else {}
    fields = {
        "v2": "False",
        "base_model_version": kohya.base_model_version,
        "network_module": module,
        "network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        "network_args": json.dumps(arguments),
        "output_name": name,
        "sd_model_name": str(about["base"]).replace("\\", "/").rpartition("/")[2] if about.get("base") else None,
        "resolution": f"({side}, {side})" if side else None,
        "tag_frequency": json.dumps({name: {token: 1}}) if token else None,
        "learning_rate": recipe.get("learning_rate"),
        "max_train_steps": recipe.get("steps"),
        "seed": recipe.get("seed"),
    }
    return {f"ss_{name}": str(value) for name, value in fields.items() if value is not None}
