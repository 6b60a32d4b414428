"""The whole model as a folder that stock diffusers' `from_pretrained` reads, complete or not there at all."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.errors import UserError
from limner.export.layout import published_weights
from limner.export.tensors import write_tensors
from limner.families.family import Family
from limner.files import replacing
from limner.rundir import read_json, write_atomically, write_json

ABOUT = "limner.json"
"""What we say about the model; it marks a folder as ours, which may be replaced."""
NOT_OURS = ("_name_or_path", "is_local", "local_files_only")
"""Where this machine found a part: nobody else's business, and other bytes for equal weights."""


def write_diffusers_folder(
    family: Family, out: Path, *, dtype: torch.dtype, about: Mapping[str, object], shard_gb: float | None = None
) -> Path:
    """Write the family's weights as they stand (merge an adapter first) as a complete model folder; return its path.

    A part larger than `shard_gb` (in 10^9 bytes) is split into files, with an index.

    Raises:
        UserError: `out` holds something that is not a model of ours.
    """
    if out.exists() and not (out / ABOUT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already and no model of Limner's.", "Name another folder.")
    scheduler = _scheduler(family.scheduler_config)
    pipeline = family.pipeline(scheduler)
    with replacing(out) as new:
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                _write_model(part, new / name, dtype, shard_gb)
            elif name.startswith("tokenizer"):
                write_tokenizer(part, new / name)
        _write_config(scheduler, new / "scheduler" / "scheduler_config.json")
        _write_config(pipeline, new / "model_index.json")
        write_json(new / ABOUT, {**family.facts, **about})
    return out


def _scheduler(config: dict[str, Any]) -> Any:
    """Make the base's own scheduler, or DDIM where that one cannot begin at pure noise and has to."""
    import diffusers

    kind = getattr(diffusers, config["_class_name"])
    able = "rescale_betas_zero_snr" in inspect.signature(kind).parameters
    return (kind if able or not config.get("rescale_betas_zero_snr") else diffusers.DDIMScheduler).from_config(config)


def _write_config(part: Any, path: Path, **changes: str) -> None:
    config = json.loads(part.to_json_string())
    write_json(path, {**{key: value for key, value in config.items() if key not in NOT_OURS}, **changes})


def _write_model(model: nn.Module, folder: Path, dtype: torch.dtype, shard_gb: float | None) -> None:
    from diffusers import ModelMixin
    from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
    from transformers.utils import SAFE_WEIGHTS_NAME

    if isinstance(model, ModelMixin):
        _write_config(model, folder / "config.json")
        file = folder / SAFETENSORS_WEIGHTS_NAME
    else:
        _write_config(model.config, folder / "config.json", dtype=str(dtype).removeprefix("torch."))
        file = folder / SAFE_WEIGHTS_NAME
    _write_shards(file, published_weights(model, dtype), shard_gb)


def _write_shards(file: Path, weights: dict[str, torch.Tensor], shard_gb: float | None) -> None:
    """Write one file, or several of a largest size with an index as diffusers and transformers read it."""
    from huggingface_hub import split_torch_state_dict_into_shards

    pattern = f"{file.stem}{{suffix}}{file.suffix}"
    size = int(shard_gb * 1e9) if shard_gb else sum(tensor.nbytes for tensor in weights.values()) + 1
    split = split_torch_state_dict_into_shards(weights, filename_pattern=pattern, max_shard_size=size)
    for name, inside in split.filename_to_tensors.items():
        write_tensors(file.with_name(name), {one: weights[one] for one in inside}, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(file.with_name(f"{file.name}.index.json"), index)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer as transformers 5 does, and the vocab.json and merges.txt that older programs read."""
    tokenizer.save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {k: v for k, v in settings.items() if k not in NOT_OURS})
    # How the last call truncated and padded is no part of the tokenizer.
    saved: dict[str, Any] = {**read_json(folder / "tokenizer.json"), "truncation": None, "padding": None}
    write_json(folder / "tokenizer.json", saved)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]]
    write_json(folder / "vocab.json", saved["model"]["vocab"])
    write_atomically(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode())
