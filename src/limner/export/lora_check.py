"""What was written of a LoRA is read back by the reader of all layouts, and means what it meant in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from limner.adapters.deltas import Array, Delta, DoRA, LowRank
from limner.errors import UserError
from limner.export.lora_files import read_any_lora


def has_effect(layers: Mapping[str, Delta]) -> bool:
    """Return whether a LoRA changes anything."""
    return any(change.norm() != 0 for change in layers.values())  # NaN where it depends on the weight


def require_effect(path: Path, layers: Mapping[str, Delta]) -> None:
    """Refuse a LoRA whose every change is zero."""
    if not has_effect(layers):
        raise UserError(f"{path}: the adapter has no effect: every change in it is zero.", "Train it first.")


def verify(path: Path, layers: Mapping[str, Delta], biases: Mapping[str, Array], *, dtype: torch.dtype) -> None:
    """Read a file back and compare each layer's change of weight with the one in memory, relative to its size.

    Raises:
        RuntimeError: a layer is missing or left over, or its change is another one.
    """
    written = read_any_lora(path)
    for found, wanted in ((written.layers, layers), (written.biases, biases)):
        if found.keys() != wanted.keys():
            name = min(found.keys() ^ wanted.keys())
            raise RuntimeError(
                f"{path}: {len(found)} layers read back, {len(wanted)} were written (first other: {name})"
            )
    tolerance = 1e-6 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for name, wanted in layers.items():
        error = difference(wanted, written.layers[name])
        if not error <= tolerance:
            raise RuntimeError(f"{path}: {name} reads back with an error of {error:g}")


def difference(wanted: Delta, found: Delta) -> float:
    """Return how far one change is from another, as a share of its size.

    Of two low-rank products it is the sum of both factors' shares, which bounds the product's.
    """
    if isinstance(wanted, DoRA) and isinstance(found, DoRA) and wanted.axis == found.axis:
        return difference(wanted.change, found.change) + _share(wanted.magnitude, found.magnitude)
    if isinstance(wanted, LowRank) and isinstance(found, LowRank) and wanted.rank == found.rank:
        (A, B, size), (other_A, other_B, other) = _directions(wanted), _directions(found)
        own = abs(other - size) / size if size else other
        return float(np.linalg.norm(other_A - A) + np.linalg.norm(other_B - B)) + own
    if wanted.needs_weight:
        own, other = wanted.tensors(), found.tensors()
        return sum(_share(own[name], other[name]) for name in own) if own.keys() == other.keys() else math.inf
    return _share(wanted.delta(), found.delta(wanted.delta()))


def _directions(change: LowRank) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return A and B at length 1, and what their lengths and the scale make together: a writer may shift it."""
    A, B = change.A.reshape(change.rank, -1).astype(np.float64), change.B.astype(np.float64)
    lengths = float(np.linalg.norm(A)), float(np.linalg.norm(B))
    return A / (lengths[0] or 1), B / (lengths[1] or 1), lengths[0] * lengths[1] * change.scale


def _share(wanted: Array, found: Array) -> float:
    size, off = (float(np.linalg.norm(x.astype(np.float64))) for x in (wanted, found - wanted))
    return off / size if size else off
