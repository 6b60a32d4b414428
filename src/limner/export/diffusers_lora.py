"""The LoRA file in the diffusers / peft layout, written with its scale folded in and read back at every save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import UserError
from limner.export.modelspec import modelspec
from limner.export.tensors import HEADER, header, read_tensors, write_tensors


def write_lora(
    state: Mapping[str, Tensor], path: Path, about: Mapping[str, object], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a LoRA `state_dict` so that diffusers loads it at strength 1 as it was trained, and check what was written.

    The layout has no alpha tensor and loaders take alpha = rank, so alpha / rank is folded into B, and the header says
    alpha = rank. `about` (family, base, token ...) is kept in the header under "limner".
    """
    layers = sorted({name.rpartition(".")[0] for name in state})
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        A, B, alpha = state[f"{layer}.lora_A"], state[f"{layer}.lora_B"], float(state[f"{layer}.alpha"])
        tensors[f"{layer}.lora_A.weight"] = A.to(dtype).contiguous()
        B = B * (alpha / A.shape[0])
        tensors[f"{layer}.lora_B.weight"] = (B if A.ndim == 2 else B[:, :, None, None]).to(dtype).contiguous()
    peft = {"lora_adapter_metadata": json.dumps(_peft_metadata(layers, tensors))}
    spec = modelspec(about, adapter="lora", implementation="diffusers")
    write_tensors(path, tensors, header(about, spec) | peft)
    _verify(state, path, tolerance=max(1e-6, 4 * torch.finfo(dtype).eps))


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the LoRA's `state_dict` and what its header says about it.

    Raises:
        UserError: the file is missing, damaged, or no LoRA of this layout.
    """
    tensors, metadata = read_tensors(path)
    state: dict[str, Tensor] = {}
    for key in sorted(tensors):
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            A, B = tensors[key], tensors.get(f"{layer}.lora_B.weight")
            if B is None:
                raise UserError(f"{path}: {layer} has an A and no B.", "The file is not complete: get it again.")
            state |= {
                f"{layer}.lora_A": A,
                f"{layer}.lora_B": B.flatten(1),
                f"{layer}.alpha": torch.tensor(float(A.shape[0])),
            }
    if 2 * len(state) != 3 * len(tensors) or not state:
        strange = next((k for k in tensors if ".lora_A." not in k and ".lora_B." not in k), "no tensor")
        raise UserError(
            f"{path}: is not a LoRA in the diffusers layout (first key that does not belong: {strange}).",
            "Use a file that Limner or diffusers wrote.",
        )
    return state, json.loads(metadata.get(HEADER, "{}"))


def _peft_metadata(layers: list[str], tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Return what peft's LoraConfig needs per component, rank equal to alpha because the scale is folded in."""
    metadata: dict[str, object] = {}
    for component in sorted({layer.partition(".")[0] for layer in layers}):
        own = [layer for layer in layers if layer.startswith(f"{component}.")]
        ranks = {layer.partition(".")[2]: tensors[f"{layer}.lora_A.weight"].shape[0] for layer in own}
        common = max(set(ranks.values()), key=list(ranks.values()).count)
        others = {layer: rank for layer, rank in ranks.items() if rank != common}
        metadata |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.target_modules": sorted(ranks),
            f"{component}.rank_pattern": others,
            f"{component}.alpha_pattern": others,
        }
    return metadata


def _verify(state: Mapping[str, Tensor], path: Path, *, tolerance: float) -> None:
    """Read the file back and compare each layer's change of weight with the one in memory, relative to its size."""
    written, _ = read_lora(path)
    if written.keys() != state.keys():
        raise RuntimeError(f"{path}: {len(written)} tensors read back, {len(state)} were written")
    for layer in {name.rpartition(".")[0] for name in state}:
        wanted, found = _delta(state, layer), _delta(written, layer)
        error = float((wanted - found).abs().max())
        if error > tolerance * max(1.0, float(wanted.abs().max())):
            raise RuntimeError(f"{path}: {layer} reads back with an error of {error:g}")


def _delta(state: Mapping[str, Tensor], layer: str) -> Tensor:
    A, B = state[f"{layer}.lora_A"].float().flatten(1), state[f"{layer}.lora_B"].float()
    return B @ A * (float(state[f"{layer}.alpha"]) / A.shape[0])


def has_effect(state: Mapping[str, Tensor]) -> bool:
    """Return whether the LoRA changes anything: some layer's B is not zero."""
    return any(bool(tensor.any()) for name, tensor in state.items() if name.endswith(".lora_B"))
