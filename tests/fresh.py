"""Bases that every test gets afresh: read from the disk once, and copied."""

from __future__ import annotations

import functools
import io
import pickle
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from limner.families.family import Family
from limner.families.load import load


def fresh(base: str | Path, dtype: torch.dtype = torch.float32) -> Family:
    """Return a base on the CPU as `load` gives it, with weights and modules of its own."""
    pickled, apart = _loaded(str(base), dtype)
    unpickler = pickle.Unpickler(io.BytesIO(pickled))  # noqa: S301 - what this very process has pickled
    unpickler.persistent_load = lambda number: _copied(apart[number])  # type: ignore[method-assign]
    return unpickler.load()


@functools.cache
def _loaded(base: str, dtype: torch.dtype) -> tuple[bytes, dict[int, Any]]:
    """Return a base pickled, which is copied in a fifth of a deep copy's time, and what is not in there, by number."""
    apart: dict[int, Any] = {}

    def number_of(value: object) -> int | None:
        if not isinstance(value, Tensor | types.FunctionType | PreTrainedTokenizerBase):
            return None
        apart[id(value)] = value
        return id(value)

    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    pickler.persistent_id = number_of  # type: ignore[method-assign]
    pickler.dump(load(base, dtype=dtype, device="cpu"))
    return file.getvalue(), apart


def _copied(value: Any) -> Any:
    """Return a tensor's copy; functions and tokenizers are shared."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
    return value.clone() if isinstance(value, Tensor) else value
