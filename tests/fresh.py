"""Bases that every test gets afresh: read from the disk once, and copied."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limner.families.family import Family
from limner.families.load import load


def fresh(base: str | Path, dtype: torch.dtype = torch.float32) -> Family:
    """Return a base on the CPU as `load` gives it, with weights and modules of its own."""
    loaded = _loaded(str(base), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__deepcopy__", _copied, raising=False)
        return copy.deepcopy(loaded)


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as `copy` does, but its dozen empty dictionaries of hooks without asking each how it is copied."""
    new = memo[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        is_empty = type(value) in (dict, set, OrderedDict) and not value
        vars(new)[name] = type(value)() if is_empty else copy.deepcopy(value, memo)
    return new


@functools.cache
def _loaded(base: str, dtype: torch.dtype) -> Family:
    return load(base, dtype=dtype, device="cpu")
