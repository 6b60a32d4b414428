"""Layers of a frozen UNet that keep less for the backward pass: no input of a weight that does not learn, and nothing
that is made again in less time than a hundredth of a step.

Values and gradients are those of torch's and diffusers' own layers, bit for bit; but for the order of a sum where a
convolution is a matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.families.convolution import convolve
from limner.families.storage import Acting, pack

aten: Any = torch.ops.aten
LARGE_BYTES = 2**20
"""From this size on of what they read, layer norms are made again for a LoRA; of less, little would be saved."""


class Convolution(nn.Conv2d):
    """A convolution that keeps its input for the backward pass only where its weights learn.

    torch's own keeps it always, for a gradient of the weight that nobody asked for.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` (rows, channels, height, width)."""
        if torch.compiler.is_compiling() or _casts(input) or type(self.weight) is not nn.Parameter:
            return super().forward(input)
        geometry = self.stride, self.padding, self.dilation, self.groups
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if learns or not input.requires_grad:
            return convolve(input, self.weight, self.bias, *geometry)  # type: ignore[arg-type]
        return Acting.apply(input, pack(self.weight, "as_computed"), self.bias, *geometry)


class GroupNorm(nn.GroupNorm):
    """A group norm that says what it was made of, so that a `SiLU` after it need not keep what comes out of it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (rows, channels, ...) normalised."""
        return _said(super().forward(input), self, input)


class LayerNorm(nn.LayerNorm):
    """A layer norm that says what it was made of, so that a LoRA after it need not keep what comes out of it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (rows, tokens, channels) normalised."""
        normed = super().forward(input)
        return _said(normed, self, input) if input.nbytes >= LARGE_BYTES else normed


def _said(normed: Tensor, norm: nn.GroupNorm | nn.LayerNorm, made_of: Tensor) -> Tensor:
    """Return what a frozen norm has made, which carries from then on how it is made again."""
    learns = any(weight.requires_grad for weight in norm.parameters())
    if normed.requires_grad and not (learns or _casts(made_of) or torch.compiler.is_compiling()):
        normed.normed_from = (norm, made_of)  # type: ignore[attr-defined]
    return normed


class SiLU(nn.SiLU):
    """x * sigmoid(x); of a `GroupNorm`'s output it keeps nothing, and normalises again on the way back."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the activation of `input`."""
        norm, x = getattr(input, "normed_from", (None, None))
        return super().forward(input) if norm is None else _SiLUOfNorm.apply(input, x, norm)


class _SiLUOfNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, normed: Tensor, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return F.silu(normed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return aten.silu_backward(grads[0], ctx.norm(x)), None, None


class GEGLU(nn.Module):
    """value * gelu(gate), both projected from one input (arXiv:2002.05202): gelu(gate) is not kept, but made again."""

    proj: nn.Linear

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the gated values of `hidden_states` (rows, tokens, channels)."""
        both = self.proj(hidden_states)
        is_own = both.requires_grad and not torch.compiler.is_compiling()  # a compiler chooses what is made again
        return _Gated.apply(both) if is_own else _gated(both)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _gated(both)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (both,), (grad,) = ctx.saved_tensors, grads
        value, gate = both.chunk(2, dim=-1)
        back = torch.empty_like(both)
        of_value, of_gate = back.chunk(2, dim=-1)
        of_value.copy_(grad * F.gelu(gate))
        of_gate.copy_(aten.gelu_backward(grad * value, gate))
        return back


def _gated(both: Tensor) -> Tensor:
    value, gate = both.chunk(2, dim=-1)
    return value * F.gelu(gate)


def keep_less(module: nn.Module) -> None:
    """Make what can be of a UNet's layers such that keep less; nothing else of them changes."""
    from diffusers.models import activations  # the UNet is diffusers' own, and has brought it

    for layer in module.modules():
        kind = type(layer)
        if kind is nn.Conv2d and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
            layer.__class__ = Convolution
        elif kind is nn.GroupNorm:
            layer.__class__ = GroupNorm
        elif kind is nn.LayerNorm:
            layer.__class__ = LayerNorm
        elif kind is nn.SiLU and not layer.inplace:
            layer.__class__ = SiLU
        elif kind is activations.GEGLU:
            layer.__class__ = GEGLU


def _casts(x: Tensor) -> bool:
    """Say whether autocast is on, under which what is kept is a copy in another number format."""
    return torch.is_autocast_enabled("cpu" if x.is_meta else x.device.type)  # it knows no "meta"
