"""The full-size model with random weights: the published counts, and files that are what they should be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import full_size
from limner.families.weights import read_header


@pytest.mark.parametrize("family", full_size.PARAMETERS)
def test_the_parameters_are_as_many_as_published(family: str) -> None:
    shapes = full_size.part_shapes(family)
    counts = {part: sum(math.prod(shape) for shape in named.values()) for part, named in shapes.items()}
    assert counts == full_size.PARAMETERS[family]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_written_one_by_one_and_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = {"conv.weight": (4, 3, 3, 3), "norm.weight": (4,), "norm.bias": (4,), "token_embedding.weight": (50, 8)}
    full_size.write(tmp_path / "x.safetensors", shapes, dtype)
    assert read_header(tmp_path / "x.safetensors").shapes == shapes
    read = load_file(tmp_path / "x.safetensors")
    for name, drawn in full_size.weights(shapes):
        assert torch.equal(read[name], drawn.to(dtype))
        assert bool(read[name].isfinite().all())
    assert 0.1 < float(read["conv.weight"].float().abs().max()) <= 27**-0.5 * 1.01
