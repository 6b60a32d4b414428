"""Layers of a frozen UNet that keep less for the backward pass: no input of a weight that does not learn, and nothing
that is made again in little time for what it takes.

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
"""From this size on of what they read, layer norms and gated units are made again for a LoRA; of less, little would be
saved."""
NARROW = 640
"""Up to so many channels gated units are projected again: what it takes grows with them, what it saves does not."""


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
    """value * gelu(gate), both projected from one input (arXiv:2002.05202): gelu(gate) is not kept, but made again.

    Of a large input on a CPU both are projected again: for 2 % of a step's time 6 % of the memory. On a GPU time is
    dearer; a compiler chooses by itself what is made again.
    """

    proj: nn.Linear
    stands_for: str = "meta"
    """The kind of device whose way a unit without memory goes."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the gated values of `hidden_states` (rows, tokens, channels)."""
        norm, made_of = getattr(hidden_states, "normed_from", (None, hidden_states))
        if _is_projected_again(hidden_states, self.proj, self.stands_for):
            return _Projected.apply(hidden_states, made_of.detach(), norm, self.proj)
        both = self.proj(hidden_states)
        is_own = both.requires_grad and not torch.compiler.is_compiling()
        return _Gated.apply(both) if is_own else _gated(both)


def _is_projected_again(x: Tensor, proj: nn.Module, stands_for: str) -> bool:
    """Say whether a projection of x is too large to be kept, and depends on nothing that learns but x."""
    device = stands_for if x.is_meta else x.device.type
    is_large = device == "cpu" and x.nbytes >= LARGE_BYTES and x.shape[-1] <= NARROW
    is_plain = type(proj) is nn.Linear and type(proj.weight) is nn.Parameter and not vars(proj)["_forward_hooks"]
    learns = any(weight.requires_grad for weight in proj.parameters())
    return is_large and is_plain and x.requires_grad and not (learns or _casts(x) or torch.compiler.is_compiling())


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _gated(both)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _gated_back(grads[0], *ctx.saved_tensors)


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, made_of: Tensor, norm: nn.Module | None, proj: nn.Linear) -> Tensor:
        ctx.save_for_backward(made_of)
        ctx.layers = norm, proj
        return torch.cat([_gated(proj(piece)) for piece in _pieces(x)], dim=-2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (made_of,), (norm, proj) = ctx.saved_tensors, ctx.layers
        back = [
            _gated_back(grad, proj(piece if norm is None else norm(piece))) @ proj.weight
            for grad, piece in zip(_pieces(grads[0], made_of), _pieces(made_of), strict=True)
        ]
        return torch.cat(back, dim=-2), None, None, None


def _pieces(x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return x in pieces along its tokens, as many as make 1 MiB of `like`: large ones leave holes when they go."""
    pieces = x.chunk(-(-(x if like is None else like).nbytes // LARGE_BYTES), dim=-2)
    return tuple(piece.contiguous() for piece in pieces)  # of others a bias is added apart, and rounded once more


def _gated_back(grad: Tensor, both: Tensor) -> Tensor:
    """Return the gradient of what was projected, given that of the gated values."""
    value, gate = both.chunk(2, dim=-1)
    back = torch.empty_like(both)
    of_value, of_gate = back.chunk(2, dim=-1)
    torch.mul(grad, F.gelu(gate), out=of_value)
    aten.gelu_backward(grad * value, gate, grad_input=of_gate)
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


def stand_for(module: nn.Module, device: str) -> None:
    """Have a UNet without memory keep what it would on a device: "cpu", "cuda"."""
    for layer in module.modules():
        if isinstance(layer, GEGLU):
            layer.stands_for = device


def _casts(x: Tensor) -> bool:
    """Say whether autocast is on, under which what is kept is a copy in another number format."""
    return torch.is_autocast_enabled("cpu" if x.is_meta else x.device.type)  # it knows no "meta"
