"""Bases that every test gets afresh: read from the disk once, and copied."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch

from limner.families.family import Family
from limner.families.load import load


def fresh(base: str | Path, dtype: torch.dtype = torch.float32) -> Family:
    """Return a base on the CPU as `load` gives it, with weights and modules of its own."""
    return copy.deepcopy(_loaded(str(base), dtype))


@functools.cache
def _loaded(base: str, dtype: torch.dtype) -> Family:
    return load(base, dtype=dtype, device="cpu")
