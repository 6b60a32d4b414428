"""Convolutions on a CPU as matrix products where those are faster: of many weights over few pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FEW_PIXELS = {2**20: 64, 2**24: 256}
"""From so many weights on: up to so many pixels of output, in all rows, a matrix product is faster.

oneDNN lays the weights out anew at every call, which few pixels do not repay; a product lays out the pixels.
"""
Sides = tuple[int, ...]
aten: Any = torch.ops.aten


def convolve(
    x: Float[Tensor, "rows in height width"], weight: Float[Tensor, "out in_of_group down across"], bias: Tensor | None,
    stride: Sides, padding: Sides, dilation: Sides, groups: int,
) -> Float[Tensor, "rows out new_height new_width"]:  # fmt: skip
    """Return a convolution, as `torch.nn.functional.conv2d` gives it but for the order of its sums."""
    sides = _sides(x.shape, weight, stride, padding, dilation)
    if not _is_better_a_product(weight, x.shape[0], sides, groups):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    columns = _beside(F.unfold(x, weight.shape[2:], dilation, padding, stride))
    matrix = weight.flatten(1)
    out = matrix @ columns if bias is None else torch.addmm(bias[:, None], matrix, columns)
    return _apart(out, x.shape[0]).reshape(x.shape[0], -1, *sides).contiguous()


def convolve_back(
    grad: Float[Tensor, "rows out new_height new_width"], shape: Sides,
    weight: Float[Tensor, "out in_of_group down across"],
    stride: Sides, padding: Sides, dilation: Sides, groups: int,
) -> Float[Tensor, "rows in height width"]:  # fmt: skip
    """Return the gradient of a convolution's input, which has `shape`, given that of its output."""
    if not _is_better_a_product(weight, grad.shape[0], grad.shape[2:], groups):
        # Of the input only the shape is read; torch.nn.grad gives one number expanded to it, which would be copied out.
        return aten.convolution_backward(
            grad, grad.new_empty(shape), weight, None, stride, padding, dilation, False, [0, 0], groups,
            [True, False, False],
        )[0]  # fmt: skip
    columns = _apart(weight.flatten(1).T @ _beside(grad.flatten(2)), grad.shape[0])
    # pixels that several columns share are summed in float32, as a convolution sums them
    return F.fold(columns.float(), shape[2:], weight.shape[2:], dilation, padding, stride).to(grad.dtype)


def _sides(shape: Sides, weight: Tensor, stride: Sides, padding: Sides, dilation: Sides) -> tuple[int, ...]:
    """Return the height and the width of what a convolution makes."""
    geometry = zip(shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return tuple(
        (side + 2 * beyond - apart * (taps - 1) - 1) // step + 1 for side, taps, step, beyond, apart in geometry
    )


def _is_better_a_product(weight: Tensor, rows: int, sides: Sides, groups: int) -> bool:
    pixels, weights = rows * sides[0] * sides[1], weight.numel()
    is_better = any(weights >= many and pixels <= few for many, few in FEW_PIXELS.items())
    return is_better and groups == 1 and weight.device.type == "cpu"


def _beside(columns: Float[Tensor, "rows values pixels"]) -> Float[Tensor, "values all_pixels"]:
    """Return the columns of all rows side by side."""
    return columns.transpose(0, 1).flatten(1)


def _apart(columns: Float[Tensor, "values all_pixels"], rows: int) -> Float[Tensor, "rows values pixels"]:
    """Return the columns of each row for itself again."""
    return columns.unflatten(1, (rows, -1)).transpose(0, 1)
