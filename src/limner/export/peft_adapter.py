"""The files of peft's methods: an ordinary LoRA file where the method is one, else peft's own names and config.

rsLoRA, PiSSA, OLoRA and MiCA are written as LoRA, DoRA in diffusers' layout: whatever reads those, reads them. Any
other method's file is for Limner and for peft: its header holds peft's config of each part (unet, text_encoder), and
its keys are `<part>.<path>.<peft's name>`, to be given to `set_peft_model_state_dict` without the part's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.adapters.deltas import Delta
from limner.adapters.peft import METHODS, Peft
from limner.adapters.relative import IA3
from limner.errors import UserError
from limner.export.diffusers_lora import write_lora
from limner.export.header_alphas import CONFIGS, SPEC
from limner.export.modelspec import HEADER, modelspec
from limner.export.tensors import header, read_tensors, write_tensors

WITHOUT_BIAS = (".to_q", ".to_k", ".to_v")
"""The layers of a UNet, among those that learn, that have no bias."""
NOT_LYCORIS = {
    "oft": "turns a layer's outputs, and peft its inputs.",
    "glora": "multiplies the weight with a matrix, and peft number by number.",
}
"""Why LyCORIS cannot hold a method although it has one of that name."""
MAGNITUDE = ".lora_magnitude_vector"
"""How the UNet's DoRA magnitudes end in a file; in memory they are a module's `.weight`.

A text encoder's keep the `.weight`: without it transformers 5 leaves them out and says nothing.
"""


def write_peft(spec: Peft, state: Mapping[str, Tensor], path: Path, about: Mapping[str, object]) -> None:
    """Write an adapter's `state_dict` so that whatever can read its method does, and check what was written.

    `about` (family, base, token ...) is kept in the header under "limner".
    """
    is_lora = METHODS[spec.method].kind == "LORA"
    if is_lora and spec.method != "dora":
        write_lora(_as_lora(spec, state), path, about)
        return
    if is_lora:
        spec, state = _folded(spec, state)
    configs = {part: _plain(config) for part, (config, _) in configs_of(spec, state).items()}
    metadata = header(about, modelspec(about, adapter="lora" if is_lora else spec.method, implementation="peft"))
    metadata |= {SPEC: spec.model_dump_json(), CONFIGS: json.dumps(configs, sort_keys=True)}
    if is_lora:
        flat = {f"{part}.{key}": value for part, config in configs.items() for key, value in config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(flat, sort_keys=True)
    write_tensors(path, {_in_file(name): tensor for name, tensor in state.items()}, metadata)


def read_peft(path: Path) -> tuple[Peft, dict[str, Tensor], dict[str, object]]:
    """Return the settings, the `state_dict` and what the header says of an adapter in peft's own layout.

    Raises:
        UserError: the file is missing, damaged, or not of this layout.
    """
    tensors, metadata = read_tensors(path)
    if SPEC not in metadata:
        raise UserError(
            f"{path}: is not in the layout of adapter.kind=peft (its header has no {SPEC!r}).",
            "Use a file that Limner wrote; rsLoRA, PiSSA, OLoRA and MiCA are read as LoRA.",
        )
    state = {f"{name}.weight" if name.endswith(MAGNITUDE) else name: tensor for name, tensor in tensors.items()}
    return Peft.model_validate_json(metadata[SPEC]), state, json.loads(metadata.get(HEADER, "{}"))


def _in_file(name: str) -> str:
    """Return the name that a tensor has in the file."""
    return name.removesuffix(".weight") if name.startswith("unet.") and f"{MAGNITUDE}.weight" in name else name


def _as_lora(spec: Peft, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the change as a plain LoRA's `state_dict`, alpha equal to rank.

    What PiSSA takes out of the base at its start becomes a second half of the rank, with the opposite sign.
    """
    _, folded = _folded(spec, state)
    lora: dict[str, Tensor] = {}
    for layer in sorted({name.partition(".lora_")[0] for name in folded if ".lora_" in name}):
        A, B = folded[f"{layer}.lora_A.weight"], folded[f"{layer}.lora_B.weight"].flatten(1)
        if f"{layer}.start_A" in folded:
            A = torch.cat([A, folded[f"{layer}.start_A"]])
            B = torch.cat([B, -folded[f"{layer}.start_B"]], 1)
        lora |= {f"{layer}.lora_A": A, f"{layer}.lora_B": B, f"{layer}.alpha": torch.tensor(float(A.shape[0]))}
    return lora


def _folded(spec: Peft, state: Mapping[str, Tensor]) -> tuple[Peft, dict[str, Tensor]]:
    """Return the same adapter with its scale folded into B, so that alpha is its rank."""
    config = spec.config(())
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    folded = {name: t * scale if name.endswith(".lora_B.weight") else t for name, t in state.items()}
    return spec.model_copy(update={"rank": config.r, "alpha": float(config.r), "options": {}}), folded


def layers_of(spec: Peft, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the paths of the layers that a `state_dict` is for, by part."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PeftType

    mark = f".{PEFT_TYPE_TO_PREFIX_MAPPING[PeftType[METHODS[spec.method].kind]]}"
    found: dict[str, list[str]] = {}
    for name in sorted({name.partition(mark)[0] for name in state if mark in name}):
        part, _, path = name.partition(".")
        if path:  # else it is what all layers share
            found.setdefault(part, []).append(path)
    return found


def configs_of(spec: Peft, state: Mapping[str, Tensor]) -> dict[str, tuple[Any, list[str]]]:
    """Return peft's config of each part that a `state_dict` is for, and the paths of its layers there."""
    return {part: (spec.config(tuple(paths)), paths) for part, paths in layers_of(spec, state).items()}


def as_lycoris(spec: Peft, state: Mapping[str, Tensor], path: Path) -> dict[str, Delta]:
    """Return what LyCORIS makes of a method in the very same way: (IA)^3 of layers that have no bias.

    Raises:
        UserError: LyCORIS's own method is another one, or has no place for what this one does to biases.
    """
    if spec.method != "ia3":
        why = NOT_LYCORIS.get(spec.method, "has no such method.")
        raise UserError(f"{path}: is an adapter of peft's method {spec.method}, and no LoRA; LyCORIS {why}",
                        "Limner draws with it as it is (generate --adapter); limner export --to peft writes it for "
                        "peft.")  # fmt: skip
    layers = {name.removesuffix(".ia3_l"): tensor for name, tensor in state.items()}
    with_bias = [layer for layer in layers if not layer.startswith("unet.") or not layer.endswith(WITHOUT_BIAS)]
    if with_bias:
        raise UserError(
            f"{path}: scales the biases of {len(with_bias)} of {len(layers)} layers too, and (IA)^3 of LyCORIS has no "
            f"place for them (first: {with_bias[0]}).",
            "Use --to peft, or train it on layers without one: adapter.text_encoder=false "
            'adapter.targets=["*.to_q","*.to_k","*.to_v"].',
        )
    return {layer: IA3(tensor.float().reshape(-1).numpy() - 1, on_input=False) for layer, tensor in layers.items()}


def _plain(config: Any) -> dict[str, Any]:
    """Return a peft config as JSON can hold it, without what is not set."""
    fields = config.to_dict().items()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields if value is not None}
