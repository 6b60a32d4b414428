"""The whole model as one checkpoint in the original Stable Diffusion layout, for A1111, Forge, ComfyUI and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limner.export.layout import original_weights
from limner.export.modelspec import modelspec
from limner.export.tensors import header, write_tensors
from limner.families.family import Family
from limner.families.recognise import FAMILIES


def write_single_file(family: Family, path: Path, *, dtype: torch.dtype, about: Mapping[str, object]) -> Path:
    """Write the family's weights as they stand (merge an adapter first) to one safetensors file; return its path.

    Names and shapes are derived from the configurations, so a smaller model of the same classes is written alike. The
    file holds no configuration: to read such a smaller one, diffusers' `from_single_file` needs `config=FOLDER`.
    """
    tensors: dict[str, Tensor] = _markers(family)
    for part in FAMILIES[family.kind].prefixes:
        tensors |= original_weights(family.kind, part, family.parts[part], dtype)
    said = {**family.facts, **about}
    write_tensors(path, tensors, header(said, modelspec(said)))
    return path


def _markers(family: Family) -> dict[str, Tensor]:
    """Return the empty tensors that tell ComfyUI and Forge of v-prediction and of a schedule that ends in pure noise.

    ComfyUI heeds them in SDXL and takes every SD 1.x checkpoint for epsilon: there, add its ModelSamplingDiscrete node.
    """
    markers = {
        "v_pred": family.schedule.prediction_type == "v_prediction",
        "ztsnr": bool(family.scheduler_config.get("rescale_betas_zero_snr")),
    }
    return {name: torch.zeros(0) for name, holds in markers.items() if holds}
