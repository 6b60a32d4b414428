"""Layers that the peft library makes, computing in the place of a base's, which stays as it is."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.adapters.adapter import Attachable, Change, Layered, require_fit
from limner.errors import UserError
from limner.seeds import seed_of

ROUNDING = 1e-6
"""A change shorter than this share of the weight's own length is the rounding of an adapter that does nothing."""
MOVES_BASE = ("pissa", "olora")
"""The starts of a LoRA that peft takes out of the base's weights, so that it can be taken out of them again."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the base, and peft's beside it."""

    target: nn.Linear | nn.Conv2d
    """The base's own layer, still in its place."""
    tuner: Any
    """peft's layer around a twin of it that shares its weights."""
    start: tuple[Tensor, Tensor] | None
    """B and A (float32, scaled) that the method takes out of the base's weight, so that it starts as the identity."""

    def tuned(self) -> dict[str, Tensor]:
        """Return the layer's parameters with the change in them, float32."""
        twin = self.tuner.base_layer
        self.tuner.base_layer = copy.deepcopy(twin).float()
        self.tuner.merge()
        found = {name: p.detach().clone() for name, p in self.tuner.base_layer.named_parameters()}
        self.tuner.merged_adapters.clear()
        self.tuner.base_layer = twin
        if self.start:
            B, A = self.start
            found["weight"] -= B @ A
        return found


class PeftLayers(Layered):
    """Layers of peft that compute in the place of the base's, whose modules, names and weights stay as they are."""

    slots = 1

    def __init__(self, layers: Mapping[str, Layer], tensors: Mapping[str, Tensor]) -> None:
        self.layers, self._tensors = dict(layers), dict(tensors)
        self._learning = {name: t for name, t in tensors.items() if t.requires_grad}
        super().__init__(self.layers)
        for name, layer in self.layers.items():
            vars(layer.target)["forward"] = partial(self._forward, name, layer)  # found before the class's own

    def _forward(self, name: str, layer: Layer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, strength = partial(layer.tuner.base_layer, x, *args, **kwargs), self._strengths[name]
        if not self._enabled or strength == 0:
            return base()
        tuned = layer.tuner(x, *args, **kwargs)
        if layer.start:
            B, A = layer.start
            tuned = tuned - F.linear(F.linear(x.to(A.dtype), A), B).to(tuned.dtype)
        return tuned if strength == 1 else torch.lerp(base(), tuned, strength)

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        return dict(self._learning)

    def zero_grad(self) -> None:
        for parameter in self._learning.values():
            parameter.grad = None

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return all that peft holds beside the base, by `<root>.<path>.<peft's name>`: learned, and drawn for good."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        own = self._tensors
        require_fit(own, state)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        """Do nothing: there is one slot, and every row is its."""

    def changes(self, slot: int = 0) -> dict[str, Change]:
        squares: dict[str, float] = {}
        for name, layer in self.layers.items():
            tuned, group = layer.tuned(), name.partition(".")[0]
            for key, parameter in layer.target.named_parameters():
                moved = float((tuned[key] - parameter.float()).norm())
                rounding = ROUNDING * float(parameter.norm())
                squares[group] = squares.get(group, 0.0) + (moved**2 if moved > rounding else 0.0)
        own = {group: [t for name, t in self._learning.items() if name.startswith(f"{group}.")] for group in squares}
        return {
            group: Change(len(own[group]), sum(t.numel() for t in own[group]), math.sqrt(square))
            for group, square in squares.items()
        }

    def folded(self, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        for name, layer in self.layers.items():
            tuned = layer.tuned()
            for key, parameter in layer.target.named_parameters():
                yield parameter, torch.lerp(parameter.float(), tuned[key], self._strengths[name])

    def detach(self) -> None:
        self.unmerge()
        for layer in self.layers.values():
            del vars(layer.target)["forward"]
        self.layers.clear()


def attach_configs(base: Attachable, configs: Mapping[str, tuple[Any, Sequence[str]]], seed: int = 0) -> PeftLayers:
    """Attach what peft makes of its configs, each with the paths of its layers, by the base's root; as it begins.

    Raises:
        UserError: a layer is not in the base.
        ValueError, TypeError, UserWarning: peft refuses the settings.
    """
    layers: dict[str, Layer] = {}
    tensors: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # peft draws from the global generator
        torch.manual_seed(seed_of(seed, "peft"))
        for root, (config, paths) in configs.items():
            built, held = _build(base.modules[root], paths, config)
            layers |= {f"{root}.{path}": layer for path, layer in built.items()}
            tensors |= {f"{root}.{name}": tensor for name, tensor in held.items()}
    return PeftLayers(layers, tensors)


def _build(module: nn.Module, paths: Sequence[str], config: Any) -> tuple[dict[str, Layer], dict[str, Tensor]]:
    """Have peft build its layers around those of `module`, which is left as it was; return them and their tensors."""
    import peft.mapping as known

    targets = layers_at(module, paths)
    moves_base = getattr(config, "init_lora_weights", None) in MOVES_BASE
    weights = {path: target.weight.data.clone() for path, target in targets.items() if moves_base}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Invalid `")  # peft would take another block size than the one asked for
            tuner = known.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](module, config, "default")
        built: dict[str, Any] = {path: module.get_submodule(path) for path in targets}
    finally:
        for path, target in targets.items():
            module.set_submodule(path, target)
        for path, weight in weights.items():
            targets[path].weight.data = weight
        vars(module).pop("peft_config", None)
    layers: dict[str, Layer] = {}
    tensors = tensors_beside(tuner, built)
    for path, layer in built.items():
        layer.eval()
        layer.base_layer = copy.copy(targets[path])
        vars(layer.base_layer)["_forward_hooks"] = OrderedDict()  # what other adapters add is added once, around it
        start = None
        if moves_base:
            start = start_of(layer)
            tensors |= {f"{path}.start_B": start[0], f"{path}.start_A": start[1]}
        layers[path] = Layer(targets[path], layer, start)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()  # peft takes the base's number format
    return layers, tensors


def start_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Return B, scaled, and A of a LoRA layer of peft as it begins: what it has taken out of the base's weight."""
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return B.detach().float() * layer.scaling["default"], A.detach().float().clone()


def layers_at(module: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """Return a module's layers at some paths.

    Raises:
        UserError: one is not there.
    """
    known = dict(module.named_modules())
    missing = [path for path in paths if path not in known]
    if missing:
        raise UserError(
            f"the adapter does not fit this base: {len(paths) - len(missing)} of {len(paths)} layers are in it (first "
            f"that is not: {missing[0]}).",
            "Use the base that it was trained on.",
        )
    return {path: known[path] for path in paths}


def tensors_beside(tuner: Any, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return what peft's tuner and its layers hold beside the base, by `<path>.<peft's name>`; what is shared, once."""
    tensors = {name: t for name, t in tuner.state_dict(keep_vars=True).items() if not name.startswith("model.")}
    for path, layer in layers.items():
        shared = {id(tensor) for tensor in tensors.values()}
        own = layer.state_dict(keep_vars=True, prefix=f"{path}.")
        tensors |= {n: t for n, t in own.items() if not n.startswith(f"{path}.base_layer.") and id(t) not in shared}
    return {re.sub(r"\.default(?=\.|$)", "", name): tensor for name, tensor in tensors.items()}
