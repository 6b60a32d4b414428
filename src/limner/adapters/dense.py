"""Changes of whole weights, of whatever kind, added to the outputs of the base's layers, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.adapters.adapter import Change, Layered, require_fit, sum_by_group
from limner.adapters.deltas import Array, Delta
from limner.adapters.lora import find_layers
from limner.errors import UserError

ABLE = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


def attach_deltas(
    modules: Mapping[str, nn.Module], deltas: Mapping[str, Delta], biases: Mapping[str, Array]
) -> WeightChanges:
    """Attach changes of weights, and of biases of the same layers, by their paths from the base's root.

    Raises:
        UserError: a layer is not in the base, or has another shape there.
    """
    layers = find_layers(modules, {name: delta.shape for name, delta in deltas.items()})
    weights: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        weight = layers[name].get_parameter("weight")
        change = delta.delta(weight.detach().float().cpu().numpy()).astype(np.float32)
        weights[name] = torch.from_numpy(change).reshape(weight.shape).to(weight)
    shifts: dict[str, Tensor] = {}
    for name, bias in biases.items():
        own = layers[name].bias
        if not isinstance(own, Tensor) or own.numel() != bias.size:
            raise UserError(f"the LoRA does not fit this base: {name} has no bias of {bias.size} numbers there.",
                            "Use the base that it was trained on.")  # fmt: skip
        shifts[name] = torch.from_numpy(bias).reshape(own.shape).to(own)
    return WeightChanges(layers, weights, shifts)


class WeightChanges(Layered):
    """A fixed change of each layer's weight and bias; nothing of it learns."""

    slots = 1

    def __init__(
        self, layers: Mapping[str, nn.Module], weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]
    ) -> None:
        strange = next((name for name, layer in layers.items() if not isinstance(layer, ABLE)), None)
        if strange:
            kind = type(layers[strange]).__name__
            raise UserError(f"the LoRA changes {strange}, a {kind}, which Limner cannot change.", "Use another LoRA.")
        self.layers, self._weights, self._biases = dict(layers), dict(weights), dict(biases)
        super().__init__(self.layers)
        self._handles = [layer.register_forward_hook(partial(self._add, name)) for name, layer in self.layers.items()]

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        strength = self._strengths[name]
        if not self._enabled or strength == 0:
            return output
        added = _apply(layer, inputs[0], self._weights[name], self._biases.get(name))
        return output + (added if strength == 1 else strength * added)

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        """Return nothing: it does not learn."""
        return {}

    def zero_grad(self) -> None:
        """Do nothing: it does not learn."""

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return the changes, `<path>.weight` and `<path>.bias`."""
        return {name: tensor.clone() for name, tensor in self._named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        require_fit(self._named(), state)
        for name, tensor in self._named().items():
            tensor.copy_(state[name])

    def _named(self) -> dict[str, Tensor]:
        found = {f"{name}.weight": tensor for name, tensor in self._weights.items()}
        return found | {f"{name}.bias": tensor for name, tensor in self._biases.items()}

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        """Do nothing: there is one slot, and every row is its."""

    def changes(self, slot: int = 0) -> dict[str, Change]:
        return sum_by_group((name, Change(1, t.numel(), float(t.float().norm()))) for name, t in self._named().items())

    def folded(self, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        for key, change in self._named().items():
            name, _, part = key.rpartition(".")
            parameter = getattr(self.layers[name], part)
            yield parameter, parameter.float() + self._strengths[name] * change.float()


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a layer makes of its input with other parameters: all such layers are linear in them."""
    if x.is_floating_point():
        weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(weight)
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding
        return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    return F.embedding(x, weight) if isinstance(layer, nn.Embedding) else F.linear(x, weight, bias)
