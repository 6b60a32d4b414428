"""Convolutions of many weights over few pixels are matrix products, and give what torch's give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from limner.families.frozen import keep_less

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Conv2d], tuple[int, ...]]] = {
    "3x3": (partial(nn.Conv2d, 256, 512, 3, padding=1), (2, 256, 4, 6)),
    "down": (partial(nn.Conv2d, 256, 512, 3, stride=2, padding=(1, 0), bias=False), (1, 256, 9, 16)),
    "apart": (partial(nn.Conv2d, 512, 256, 3, dilation=2), (3, 512, 7, 8)),
    "1x1": (partial(nn.Conv2d, 1024, 1024, 1), (1, 1024, 8, 8)),
}
"""By name: the layer, and the shape of its input."""


class Names(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func))
        return func(*args, **kwargs or {})


def both_ways(layer: nn.Conv2d, pixels: Tensor) -> tuple[list[Tensor], set[str]]:
    """Return what a layer makes and all gradients, and the names of what computed them."""
    x = pixels.clone().requires_grad_()
    with Names() as names:
        out = layer(x)
        out.square().sum().backward()
    learned = [weight.grad for weight in layer.parameters() if weight.grad is not None]
    assert x.grad is not None
    layer.zero_grad()
    return [out.detach(), x.grad, *learned], names.seen


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_it_is_torchs_convolution_but_for_the_order_of_sums(name: str, learns: bool) -> None:
    make, shape = CONVOLUTIONS[name]
    layer, pixels = make().requires_grad_(learns), torch.randn(shape)
    theirs, _ = both_ways(layer, pixels)
    keep_less(layer)
    ours, names = both_ways(layer, pixels)
    assert not any("convolution" in one for one in names)
    assert len(ours) == 2 + learns * len(list(layer.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_without_gradients_too() -> None:
    make, shape = CONVOLUTIONS["3x3"]
    layer, pixels = make(), torch.randn(shape)
    with torch.no_grad():
        theirs = layer(pixels)
        keep_less(layer)
        ours = layer(pixels)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_as_exact_as_rounding_once_more() -> None:
    make, shape = CONVOLUTIONS["3x3"]
    layer, pixels = make().requires_grad_(False), torch.randn(shape).bfloat16()
    exact, _ = both_ways(layer, pixels.float())
    found, _ = both_ways(keeping_less(layer.bfloat16()), pixels)
    for one, other in zip(found, exact, strict=True):
        assert (one.float() - other).norm() < 4e-3 * other.norm()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(256, 512, 3, padding=1), (1, 256, 8, 9)),  # 72 pixels
        (nn.Conv2d(256, 512, 3, padding=1), (2, 256, 6, 6)),  # 72 in both rows
        (nn.Conv2d(128, 512, 3, padding=1), (1, 128, 4, 4)),  # 589,824 weights
        (nn.Conv2d(1024, 1024, 3, padding=1, groups=8), (1, 1024, 4, 4)),
    ],
    ids=["many pixels", "many in all rows", "few weights", "groups"],
)
def test_what_torch_does_faster_is_torchs_own(layer: nn.Conv2d, shape: tuple[int, ...]) -> None:
    layer.requires_grad_(False)
    pixels = torch.randn(shape)
    theirs, _ = both_ways(layer, pixels)
    ours, names = both_ways(keeping_less(layer), pixels)
    assert "aten.im2col.default" not in names
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def keeping_less(layer: nn.Conv2d) -> nn.Conv2d:
    keep_less(layer)
    return layer
