"""The LoRA file in the diffusers / peft layout, written with its scale folded in and read back at every save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limner.adapters.deltas import Array, Delta, DoRA, LowRank
from limner.errors import UserError
from limner.export.header_alphas import METADATA
from limner.export.kohya_lora import balanced
from limner.export.lora_check import verify
from limner.export.lora_names import with_text_model
from limner.export.modelspec import modelspec
from limner.export.tensors import header, write_tensors


def write_lora(
    state: Mapping[str, Tensor], path: Path, about: Mapping[str, object], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a LoRA's `state_dict` in the layout of diffusers, and check what was written."""
    arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
    layers = {
        name: LowRank(arrays[f"{name}.lora_A"], arrays[f"{name}.lora_B"].reshape(arrays[f"{name}.lora_B"].shape[0], -1),
                      float(arrays[f"{name}.alpha"]))
        for name in sorted({key.rpartition(".")[0] for key in state})
    }  # fmt: skip
    write_diffusers(layers, path, about, dtype=dtype)


def write_diffusers(
    layers: Mapping[str, Delta], path: Path, about: Mapping[str, object], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write LoRA and DoRA so that diffusers loads them at strength 1 as they were trained, and check what was written.

    The layout has no alpha tensor and loaders take alpha = rank, so alpha / rank is folded into B, and the header says
    alpha = rank. `about` (family, base, token ...) is kept in the header under "limner".

    Raises:
        UserError: a change is of a kind that the layout cannot hold.
    """
    folded = {layer: _folded(path, layer, change, dtype) for layer, change in layers.items()}
    tensors: dict[str, Tensor] = {}
    for layer, (plain, magnitude) in folded.items():
        name, own = with_text_model(layer), plain.tensors()
        tensors[f"{name}.lora_A.weight"] = torch.tensor(own["lora_down.weight"]).to(dtype)
        tensors[f"{name}.lora_B.weight"] = torch.tensor(own["lora_up.weight"]).to(dtype)
        if magnitude is not None:
            # A text encoder's keeps the `.weight`: without it transformers 5 leaves it out and says nothing.
            end = "" if layer.startswith("unet.") else ".weight"
            shape = (1, -1, 1, 1) if plain.A.ndim == 4 else (-1,)
            tensors[f"{name}.lora_magnitude_vector{end}"] = torch.tensor(magnitude.reshape(shape)).to(dtype)
    peft = {METADATA: json.dumps(_peft_metadata(folded), sort_keys=True)}
    write_tensors(path, tensors, header(about, modelspec(about, adapter="lora", implementation="diffusers")) | peft)
    verify(path, layers, {}, dtype=dtype)


def _folded(path: Path, layer: str, change: Delta, dtype: torch.dtype) -> tuple[LowRank, Array | None]:
    """Return a layer's LoRA with its scale in B, and DoRA's lengths."""
    plain = change.change if isinstance(change, DoRA) else change
    if not isinstance(plain, LowRank) or (isinstance(change, DoRA) and change.axis != 0):
        what = "DoRA by inputs" if isinstance(change, DoRA) else change.kind
        raise UserError(
            f"{path}: the diffusers layout cannot hold {what} (first: {layer}).", "Write it with --to lycoris."
        )
    plain = LowRank(plain.A, plain.B * np.float32(plain.scale), float(plain.rank))
    plain = balanced(plain, dtype)
    assert isinstance(plain, LowRank)
    return plain, change.magnitude if isinstance(change, DoRA) else None


def _peft_metadata(layers: Mapping[str, tuple[LowRank, Array | None]]) -> dict[str, object]:
    """Return what peft's LoraConfig needs per component, rank equal to alpha because the scale is folded in."""
    metadata: dict[str, object] = {}
    for component in sorted({layer.partition(".")[0] for layer in layers}):
        own = {n.partition(".")[2]: layer for n, layer in layers.items() if n.startswith(f"{component}.")}
        ranks = {path: plain.rank for path, (plain, _) in own.items()}
        common = max(set(ranks.values()), key=list(ranks.values()).count)
        others = {path: rank for path, rank in ranks.items() if rank != common}
        metadata |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.target_modules": sorted(ranks),
            f"{component}.rank_pattern": others,
            f"{component}.alpha_pattern": others,
            f"{component}.use_dora": any(magnitude is not None for _, magnitude in own.values()),
        }
    return metadata
