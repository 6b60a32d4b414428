"""A frozen convolution is torch's own in all but what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limner.families.frozen import Convolution, keep_no_inputs

GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "down": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1": {"kernel_size": 1, "bias": False},
    "groups": {"kernel_size": 3, "groups": 2, "dilation": 2},
}


def passes(layer: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    """Return what a layer makes, the gradient of its input, and the shapes that it kept."""
    x, kept = pixels.clone().requires_grad_(), list[tuple[int, ...]]()

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x)
    out.float().square().sum().backward()
    assert x.grad is not None
    return out, x.grad, kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_frozen_it_gives_the_same_and_keeps_no_input(name: str, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 6, **GEOMETRIES[name]).to(dtype).requires_grad_(False)
    pixels = torch.randn(2, 4, 9, 9).to(dtype)
    out, grad, kept = passes(layer, pixels)
    keep_no_inputs(layer)
    assert type(layer) is Convolution
    again = passes(layer, pixels)
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])
    assert tuple(pixels.shape) in kept
    assert tuple(pixels.shape) not in again[2]


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_what_learns_gets_its_gradient(part: str) -> None:
    layer = nn.Conv2d(4, 6, 3).requires_grad_(False)
    keep_no_inputs(layer)
    getattr(layer, part).requires_grad_(True)
    passes(layer, torch.randn(2, 4, 9, 9))
    learned = getattr(layer, part).grad
    assert learned is not None
    assert learned.abs().sum() > 0


def test_under_autocast_it_computes_as_torch_does() -> None:
    layer, pixels = nn.Conv2d(4, 6, 3).requires_grad_(False), torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out, grad, _ = passes(layer, pixels)
        keep_no_inputs(layer)
        again = passes(layer, pixels)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])
