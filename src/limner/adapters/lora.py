"""LoRA as stacked adapters: N low-rank slots on one frozen layer, trained in one batch (arXiv:2106.09685)."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limner.adapters.adapter import (
    Attachable,
    Change,
    Layered,
    SlotSettings,
    Stackable,
    lay_in_rows,
    move_into,
    move_out,
    require_fit,
    sum_by_group,
)
from limner.adapters.lora_layer import LoRALayer
from limner.adapters.relative import ANY
from limner.errors import OR_WHAT_FITS, UserError
from limner.seeds import generator
from limner.spec import Spec

ATTENTION = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0")
FEED_FORWARD = ("*.ff.net.0.proj", "*.ff.net.2", "*.proj_in", "*.proj_out")
CONVOLUTION = (
    "*.conv1",
    "*.conv2",
    "*.conv_shortcut",
    "*.time_emb_proj",
    "*.downsamplers.0.conv",
    "*.upsamplers.0.conv",
)
TARGETS = {
    "attention": ATTENTION,
    "transformer": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTION,
}
TEXT = ("text_encoder*.q_proj", "text_encoder*.k_proj", "text_encoder*.v_proj", "text_encoder*.out_proj")


class LoRA(Spec):
    """Low-rank adapters: each chosen layer W gets W + alpha / rank * B A, and only A and B learn."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """Width of the low-rank update. More learns more, in a larger file: 4 to 16 for a subject, up to 64 for a style."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength of the update is alpha / rank. Left out, alpha = rank."""
    targets: str | tuple[str, ...] = "transformer"
    """Which layers learn: "attention", "transformer" (attention, feed-forward, projections), "all" (also convolutions),
    or a list of patterns such as ["*.attn2.to_k", "*.attn2.to_v"]."""

    text_encoder: bool = False
    """Learn in the text encoder's attention too: the token then gets a meaning of its own. Helps with subjects."""

    save_precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the file: float16 halves it. A checkpoint for resuming always keeps float32."""
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the text encoder; left out, that of the run. Usually half of it or less."""

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Return the learning rate of each group."""
        text = self.text_encoder_learning_rate or learning_rate
        return {"unet": learning_rate, "text_encoder": text, "text_encoder_2": text}

    def attach(self, base: Attachable, slots: Sequence[SlotSettings]) -> StackedLoRA:
        """Attach one slot per entry of `slots` to the layers of the base that match."""
        found = self.find_targets(base.modules)
        ranks = [slot.rank or self.rank for slot in slots]
        alphas = [slot.alpha or self.alpha or float(rank) for slot, rank in zip(slots, ranks, strict=True)]
        layers = {name: LoRALayer(layer, ranks, alphas) for name, layer in found.items()}
        for index, slot in enumerate(slots):
            draws = generator(slot.seed, "lora")
            for layer in layers.values():
                layer.initialise(index, draws)
        return StackedLoRA(layers, found)

    def find_targets(self, modules: Mapping[str, nn.Module]) -> dict[str, nn.Linear | nn.Conv2d]:
        """Return the layers that the patterns choose, by their path from the base's root."""
        patterns = TARGETS.get(self.targets) if isinstance(self.targets, str) else self.targets
        if patterns is None:
            patterns = (str(self.targets),)
        patterns = (*patterns, *TEXT) if self.text_encoder else patterns
        layers = {
            f"{root}.{path}": layer
            for root, module in modules.items()
            for path, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }
        found = {n: layer for n, layer in layers.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
        for pattern in patterns if isinstance(self.targets, tuple) or self.targets not in TARGETS else ():
            if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
                raise UserError(
                    f"adapter.targets: {pattern!r} matches none of the base's {len(layers)} layers.",
                    f"Use one of {', '.join(TARGETS)}, or patterns of names such as {next(iter(layers))}.",
                )
        return found


def attach_lora(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> StackedLoRA:
    """Attach a trained LoRA given by its `state_dict`, whose memory it shares where it can; one slot.

    Raises:
        UserError: a layer is not in the base, or has another shape there.
    """
    shapes = {name.removesuffix(".lora_A"): (state[name.removesuffix("A") + "B"].shape[0], *tensor.shape[1:])
              for name, tensor in state.items() if name.endswith(".lora_A")}  # fmt: skip
    targets: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, target in find_layers(modules, shapes).items():
        assert isinstance(target, nn.Linear | nn.Conv2d), f"{name} is {type(target).__name__}"
        targets[name] = target
    layers = {}
    for name, target in targets.items():
        A, B = (state[f"{name}.lora_{x}"].to(target.weight.device, torch.float32) for x in "AB")
        layers[name] = layer = LoRALayer(target, [A.shape[0]], [float(state[f"{name}.alpha"])], empty=True)
        # a 1 x 1 convolution may be a linear layer in the file, and the other way round
        layer.A.data, layer.B.data = A.reshape(1, A.shape[0], *target.weight.shape[1:]), B[None]
    return StackedLoRA(layers, targets)


def find_layers(modules: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> dict[str, nn.Module]:
    """Return the layers that changes of weight are for, by their path from the base's root.

    Raises:
        UserError: a layer is not in the base, or its weight is of another shape there.
    """
    known = _known_layers(modules, shapes)
    unknown = [name for name in shapes if name not in known]
    if unknown or not shapes:
        raise UserError(
            f"the LoRA does not fit this base: {len(known)} of {len(shapes)} layers are in it"
            + (f" (first that is not: {unknown[0]})." if unknown else "."),
            f"Use the base that it was trained on{OR_WHAT_FITS if known else ''}.",
        )
    for name, shape in shapes.items():
        if not _fits(known[name], shape):
            own = tuple(known[name].get_parameter("weight").shape)
            raise UserError(
                f"the LoRA does not fit this base: {name} is {own} there, and {tuple(shape)} in the LoRA.",
                "Use the base that it was trained on.",
            )
    return known


def layers_that_fit(modules: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the paths of those layers that the base has, with a weight of the shape."""
    return {name for name, layer in _known_layers(modules, shapes).items() if _fits(layer, shapes[name])}


def _known_layers(modules: Mapping[str, nn.Module], names: Iterable[str]) -> dict[str, nn.Module]:
    found = {name: _layer(modules, name) for name in names}
    return {name: one for name, one in found.items() if one and isinstance(getattr(one, "weight", None), Tensor)}


def _fits(layer: nn.Module, shape: Sequence[int]) -> bool:
    """Tell whether a change of that shape is one of the layer's weight; a 1 x 1 convolution may be a linear layer."""
    own = layer.get_parameter("weight").shape
    if ANY in shape:
        return len(own) > 1 and all(side in (ANY, there) for side, there in zip(shape, own, strict=False))
    return shape[0] == own[0] and math.prod(shape) == math.prod(own)


def _layer(modules: Mapping[str, nn.Module], name: str) -> nn.Module | None:
    """Return a layer by its path from the base's root, with or without the `text_model` of before transformers 5.6."""
    root, _, path = name.partition(".")
    for place in (path, f"text_model.{path}", path.removeprefix("text_model.")):
        with suppress(KeyError, AttributeError):
            return modules[root].get_submodule(place)
    return None


class StackedLoRA(Layered, Stackable):
    """LoRA layers attached by forward hooks: the base's modules, names and weights stay as they are."""

    def __init__(self, layers: Mapping[str, LoRALayer], targets: Mapping[str, nn.Linear | nn.Conv2d]) -> None:
        self.layers, self._targets = dict(layers), dict(targets)
        self.slots = len(next(iter(self.layers.values())).ranks)
        super().__init__(self.layers)
        self._slot_of_block: Tensor | None = None
        self.attach_again()

    def attach_again(self) -> None:
        """Act on the base, for the first time or again after `detach`."""
        self._handles = [
            self._targets[name].register_forward_hook(partial(self._add, name, layer))
            for name, layer in self.layers.items()
        ]

    def stacked(self, others: Sequence[StackedLoRA]) -> StackedLoRA:
        layers: dict[str, LoRALayer] = {}
        for name, target in self._targets.items():
            own = [adapter.layers[name] for adapter in (self, *others)]
            ranks, alphas = ([value for one in own for value in getattr(one, what)] for what in ("ranks", "alphas"))
            layers[name] = LoRALayer(target, ranks, alphas)
        stack = StackedLoRA(layers, self._targets)
        stack.detach()
        stack.lend((self, *others))
        return stack

    def lend(self, members: Sequence[StackedLoRA]) -> None:
        """Have the weights and gradients of adapters of one slot lie in the slots of this one, in order."""
        for name, layer in self.layers.items():
            for slot, own in enumerate(member.layers[name] for member in members):
                rows, rank = slice(slot, slot + 1), slice(own.ranks[0])
                move_into(layer.A, (rows, rank), own.A)
                move_into(layer.B, (rows, slice(None), rank), own.B)

    def lie_in_rows(self, members: Sequence[StackedLoRA] = ()) -> tuple[Tensor, Tensor]:
        """Move all weights, and all gradients, into a row of memory for each slot; return both, [slots, width].

        `members` are the adapters that have been lent the slots, where there are any.
        """
        rows = lay_in_rows([factor for layer in self.layers.values() for factor in (layer.A, layer.B)])
        if any(member is not self for member in members):
            self.lend(members)
        return rows

    def leave(self) -> None:
        for layer in self.layers.values():
            move_out(layer.A)
            move_out(layer.B)

    def _add(
        self, name: str, layer: LoRALayer, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        strength = self._strengths[name]
        if not self._enabled or strength == 0:
            return output
        return layer(output, inputs[0], strength, self._slot_of_block)

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        return {f"{name}.{k}": v for name, layer in self.layers.items() for k, v in layer.views(slot).items()}

    def zero_grad(self) -> None:
        for layer in self.layers.values():
            layer.zero_grad(set_to_none=False)

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return `<path>.lora_A`, `<path>.lora_B` (float32) and `<path>.alpha` (a scalar) for each layer."""
        state = {}
        for name, layer in self.layers.items():
            rank = layer.ranks[slot]
            state[f"{name}.lora_A"] = layer.A.detach()[slot, :rank].clone()
            state[f"{name}.lora_B"] = layer.B.detach()[slot, :, :rank].clone()
            state[f"{name}.alpha"] = torch.tensor(layer.alphas[slot])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        require_fit(self.state_dict(slot), state)
        for name, layer in self.layers.items():
            rank = layer.ranks[slot]
            if float(state[f"{name}.alpha"]) != layer.alphas[slot]:
                raise UserError(
                    f"the adapter's alpha is {float(state[f'{name}.alpha']):g} at {name}, "
                    f"and the settings say {layer.alphas[slot]:g}.",
                    "Set adapter.alpha to the file's value.",
                )
            with torch.no_grad():
                layer.A[slot, :rank] = state[f"{name}.lora_A"].to(layer.A)
                layer.B[slot, :, :rank] = state[f"{name}.lora_B"].to(layer.B)

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        device = next(iter(self.layers.values())).A.device
        self._slot_of_block = None if slot_of_block is None else torch.tensor(slot_of_block, device=device)

    def changes(self, slot: int = 0) -> dict[str, Change]:
        return sum_by_group(
            (name, Change(2, sum(v.numel() for v in layer.views(slot).values()),
                          float(layer.delta_weight(slot).detach().norm())))
            for name, layer in self.layers.items()
        )  # fmt: skip

    def folded(self, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        for name, layer in self.layers.items():
            weight = self._targets[name].weight
            yield weight, weight.float() + self._strengths[name] * layer.delta_weight(slot)
