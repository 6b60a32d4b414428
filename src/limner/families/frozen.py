"""Convolutions that keep no input while their weights are frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limner.families.storage import Acting, pack


class Convolution(nn.Conv2d):
    """A convolution that keeps its input for the backward pass only where its weights learn.

    torch's own keeps it always, for a gradient of the weight that nobody asked for. The values and the gradients are
    the same, bit for bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` (rows, channels, height, width)."""
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        device = "cpu" if input.is_meta else input.device.type  # autocast knows no "meta"
        casts = torch.is_autocast_enabled(device)  # what is kept then is a copy, in another number format
        if learns or casts or type(self.weight) is not nn.Parameter or not input.requires_grad:
            return super().forward(input)
        geometry = self.stride, self.padding, self.dilation, self.groups
        return Acting.apply(input, pack(self.weight, "as_computed"), self.bias, *geometry)


def keep_no_inputs(module: nn.Module) -> None:
    """Make the convolutions of a module `Convolution`s; nothing else of them changes."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
            layer.__class__ = Convolution
