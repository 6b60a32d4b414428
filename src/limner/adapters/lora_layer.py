"""One layer of a stacked LoRA: N slots of A and B beside a frozen linear layer or convolution, in one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DENSE_RANKS = 64
"""Up to this many stacked ranks one dense convolution beats a grouped one."""
POINTWISE = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
"""Geometry of a convolution that, with a kernel of one pixel, is a matrix product."""


class LoRALayer(nn.Module):
    """N slots of A and B beside one frozen linear or convolutional layer.

    A smaller rank than the largest is padded with zeros in A and B: both factors' gradients are then zero there, so
    padding stays zero and needs no mask.
    """

    A: Float[Tensor, "slots rank ..."]
    B: Float[Tensor, "slots out rank"]
    scale: Float[Tensor, " slots"]

    def __init__(
        self,
        target: nn.Linear | nn.Conv2d,
        ranks: Sequence[int],
        alphas: Sequence[float],
        *,
        empty: bool = False,
    ) -> None:
        """Make the layer with factors of zero, or of nothing where others are about to take their place."""
        super().__init__()
        if isinstance(target, nn.Conv2d) and (target.groups != 1 or target.padding_mode != "zeros"):
            raise ValueError(f"LoRA on a convolution with groups={target.groups}, padding_mode={target.padding_mode}")
        self.ranks, self.alphas = tuple(ranks), tuple(alphas)
        device, slots, rank = target.weight.device, len(ranks), max(ranks)
        inputs = target.weight.shape[1:]
        shapes = ((0,), (0,)) if empty else ((slots, rank, *inputs), (slots, target.weight.shape[0], rank))
        self.A, self.B = (nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes)
        scale = [alpha / rank for alpha, rank in zip(alphas, ranks, strict=True)]
        self.register_buffer("scale", torch.tensor(scale, device=device))
        self.common_scale = scale[0] if len({*scale}) == 1 else None
        """What `scale` is in every slot, if it is the same."""
        self.geometry: dict[str, Any] | None = None
        if isinstance(target, nn.Conv2d):
            self.geometry = {"stride": target.stride, "padding": target.padding, "dilation": target.dilation}

    def initialise(self, slot: int, draws: torch.Generator) -> None:
        """Draw A uniformly in +-1/sqrt(fan_in), as peft does, and leave B zero: the layer adds nothing yet."""
        rank, shape = self.ranks[slot], self.A.shape[2:]
        bound = 1 / math.sqrt(math.prod(shape))
        with torch.no_grad():
            self.A[slot, :rank] = torch.empty(rank, *shape).uniform_(-bound, bound, generator=draws)
            self.B[slot].zero_()

    def views(self, slot: int) -> dict[str, Tensor]:
        """Return the slot's A and B at their own rank, as leaves that share storage and gradient with the stack."""
        rank = self.ranks[slot]
        views = {}
        for name, stacked, index in (
            ("A", self.A, (slot, slice(rank))),
            ("B", self.B, (slot, slice(None), slice(rank))),
        ):
            if stacked.grad is None:
                stacked.grad = torch.zeros_like(stacked)
            view = stacked.detach()[index].detach()  # that of a view keeps no hold of the memory, when it moves
            view.grad = stacked.grad[index]
            views[name] = view
        return views

    def forward(self, output: Tensor, x: Tensor, strength: float, slot_of_block: Tensor | None) -> Tensor:
        """Return the output that the target gives for rows `x` with what the slots add to it, in its dtype."""
        if slot_of_block is None and self.A.shape[0] == 1:
            return self._of_one(output, x, strength)
        A, B, scale = self.A, self.B, self.scale
        if slot_of_block is not None:
            A, B, scale = A[slot_of_block], B[slot_of_block], scale[slot_of_block]
        if x.shape[0] % A.shape[0]:
            raise ValueError(f"a batch of {x.shape[0]} rows cannot be split over {A.shape[0]} slots")
        if self.common_scale is None:
            B = B * scale.view(-1, 1, 1)
        else:
            strength = strength * self.common_scale
        A, B = A.to(x.dtype), B.to(x.dtype)
        if self.geometry is None:
            whole = output.reshape(len(A), -1, B.shape[1])
            return torch.baddbmm(whole, _narrowed(x, A), B.mT, alpha=strength).view_as(output)
        hidden = self._convolved(x, A, self.geometry).flatten(3)
        return torch.add(output, (B[:, None] @ hidden).reshape(output.shape), alpha=strength)

    def _of_one(self, output: Tensor, x: Tensor, strength: float) -> Tensor:
        """Return the same for one slot, which is what most runs are: in as few kernels as can be."""
        A, B, scale = self.A[0].to(x.dtype), self.B[0].to(x.dtype), strength * self.alphas[0] / self.ranks[0]
        if self.geometry is not None:
            added = F.conv2d(F.conv2d(x, A, **self.geometry), B[:, :, None, None])
            return torch.add(output, added, alpha=scale)
        hidden = _narrowed(x, A).flatten(0, -2)
        return torch.addmm(output.flatten(0, -2), hidden, B.T, alpha=scale).view_as(output)

    def _convolved(
        self, x: Tensor, A: Tensor, geometry: dict[str, Any]
    ) -> Float[Tensor, "slots rows rank height width"]:
        """Return each row's pixels convolved with its own slot's A."""
        slots, rank = A.shape[:2]
        if A.shape[3:] == (1, 1) and geometry == POINTWISE:
            own = A.flatten(2)[:, None] @ x.unflatten(0, (slots, -1)).flatten(3)
            return own.unflatten(3, x.shape[2:])
        return (self._dense if slots * rank <= DENSE_RANKS else self._grouped)(x, A, geometry)

    def _dense(self, x: Tensor, A: Tensor, geometry: dict[str, Any]) -> Float[Tensor, "slots rows rank height width"]:
        """Convolve every row with every slot's A at once, then keep each row's own slot."""
        slots, rank = A.shape[:2]
        every = F.conv2d(x, A.flatten(0, 1), **geometry)
        every = every.view(slots, -1, slots, rank, *every.shape[-2:])
        own = torch.arange(slots, device=x.device)
        return every[own, :, own]

    def _grouped(self, x: Tensor, A: Tensor, geometry: dict[str, Any]) -> Float[Tensor, "slots rows rank height width"]:
        """Convolve each slot's rows with its own A, as groups of one convolution."""
        slots, rank = A.shape[:2]
        rows = x.shape[0] // slots
        side_by_side = x.view(slots, rows, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        out = F.conv2d(side_by_side, A.flatten(0, 1), groups=slots, **geometry)
        return out.view(rows, slots, rank, *out.shape[-2:]).transpose(0, 1)

    def delta_weight(self, slot: int) -> Tensor:
        """Return alpha / rank * B A in float32, shaped like the layer's weight."""
        A, B = self.A[slot].float(), self.B[slot].float()
        return (B @ A.flatten(1) * self.scale[slot]).view(B.shape[0], *A.shape[1:])


def _narrowed(x: Float[Tensor, "rows ... inputs"], A: Tensor) -> Tensor:
    """Return x A^T: [rows, ..., rank] of one A, and [slots, ..., rank] of one for each slot.

    Of the output of a frozen norm, which says that it is one, nothing is kept: it is normalised again on the way back.
    """
    norm, source = getattr(x, "normed_from", (None, None))
    if norm is not None:
        return _NarrowedNorm.apply(x, A, source, norm)
    return _product(x, A)


def _product(x: Tensor, A: Tensor) -> Tensor:
    return F.linear(x, A) if A.ndim == 2 else torch.bmm(x.reshape(A.shape[0], -1, x.shape[-1]), A.transpose(1, 2))


class _NarrowedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, source: Tensor, norm: nn.LayerNorm) -> Tensor:
        ctx.save_for_backward(A, source)
        ctx.norm = norm
        return _product(x, A)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (A, source), (grad,) = ctx.saved_tensors, grads
        x = ctx.norm(source)
        if A.ndim == 2:
            grad_A = (x.flatten(0, -2).T @ grad.flatten(0, -2)).T
        else:
            grad_A = torch.bmm(x.reshape(A.shape[0], -1, x.shape[-1]).transpose(1, 2), grad).transpose(1, 2)
        return (grad @ A).view(x.shape), grad_A, None, None
