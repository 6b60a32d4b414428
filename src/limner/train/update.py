"""The update of one slot: from gradients to new weights, with all the state that this needs between steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from limner.train.average import Average, Ema
from limner.train.loss_scale import LossScale
from limner.train.optimizer import Optimizer
from limner.train.slots import Slot


@dataclass(frozen=True)
class Part:
    """Parameters that one torch optimizer updates: those of a group, or a single one where the backward is fused."""

    group: str
    rate: float
    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    @property
    def settings(self) -> dict[str, Any]:
        """The optimizer's only param group: its learning rate and whatever it counts there."""
        return self.optimizer.param_groups[0]


class Update:
    """Turns the gradient of one slot into new weights, step by step."""

    def __init__(
        self, parameters: Mapping[str, Tensor], slot: Slot, *, optimizer: Optimizer, ema: Ema, scale: LossScale
    ) -> None:
        self.parameters, self.slot, self.spec, self.scale = dict(parameters), slot, optimizer, scale
        together: dict[str, dict[str, Tensor]] = {}
        for name, parameter in parameters.items():
            group = name.partition(".")[0]
            together.setdefault(name if optimizer.fused_backward else group, {})[name] = parameter
        self.parts: list[Part] = []
        for key, members in together.items():
            group = key.partition(".")[0]
            rate = slot.rates.get(group, slot.learning_rate)
            self.parts.append(Part(group, rate, members, optimizer.build(list(members.values()), rate)))
        self.average = Average(self.parameters, ema.decay) if ema.decay else None
        self._norms: dict[str, Tensor] = {}

    def begin(self, step: int) -> None:
        """Set the learning rates of `step`, counted from 1."""
        factor = self.spec.factor(step, self.slot.steps)
        for part in self.parts:
            part.settings["lr"] = factor * part.rate

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each group in this step; where the optimizer finds it (Prodigy's d), what it found."""
        return {part.group: part.settings["lr"] * part.settings.get("d", 1.0) for part in self.parts}

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Within this block, where it is fused, each gradient updates its weight and is freed once it is there."""
        if not self.spec.fused_backward:
            yield
            return
        handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._update_one, name, part.optimizer))
            for part in self.parts
            for name, parameter in part.parameters.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _update_one(self, name: str, optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
        assert parameter.grad is not None, "autograd calls this when the gradient is there"
        if self.scale.factor != 1:
            parameter.grad /= self.scale.factor
        self._norms[name] = torch.linalg.vector_norm(parameter.grad)
        if bool(self._norms[name].isfinite()):
            optimizer.step()
        parameter.grad = None

    @torch.no_grad()
    def clip(self) -> Float[Tensor, ""]:
        """Undo the loss scale, clip the gradient, and return its norm before clipping."""
        if self.spec.fused_backward:
            norms = [self._norms.pop(name) for name in self.parameters if name in self._norms]
            return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
        if self.scale.factor != 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad /= self.scale.factor
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.spec.max_grad_norm or math.inf)

    @torch.no_grad()
    def apply(self, step: int) -> None:
        """Update the weights, which a fused backward has already done, and their average."""
        if not self.spec.fused_backward:
            for part in self.parts:
                part.optimizer.step()
        self.follow(step)

    def follow(self, step: int) -> None:
        """Move the average of the weights, where there is one, towards those after `step`."""
        if self.average:
            self.average.follow(step)

    @torch.no_grad()
    def weight_norm(self) -> Float[Tensor, ""]:
        """Return the norm of all weights of the slot, in one pass over them."""
        return torch.nn.utils.get_total_norm([p.detach() for p in self.parameters.values()])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this block the weights are their average, where there is one; after it they are what they were."""
        if not self.average and not self.spec.averages:
            yield
            return
        kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}
        own = [cast(Any, part.optimizer) for part in self.parts] if self.spec.averages else []
        for optimizer in own:
            optimizer.eval()
        if self.average:
            self._set(self.average.values)
        try:
            yield
        finally:
            for optimizer in own:
                optimizer.train()
            self._set(kept)  # the optimizer comes back by arithmetic, and so only nearly

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the next step needs: tensors by "what|name of the parameter", and plain numbers."""
        tensors = {f"weight|{name}": parameter.detach() for name, parameter in self.parameters.items()}
        if self.average:
            tensors |= {f"ema|{name}": value for name, value in self.average.values.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            for name, parameter in part.parameters.items():
                for key, value in part.optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):  # what is not shaped like the parameter may be shared with others
                        tensors[f"{key}|{name}"] = value if value.shape == parameter.shape else value.clone()
                    else:
                        scalars.setdefault(name, {})[key] = value
        settings = [{key: value for key, value in part.settings.items() if key != "params"} for part in self.parts]
        return tensors, {"settings": settings, "scalars": scalars, "scale": [self.scale.factor, self.scale.good_steps]}

    def state_bytes(self) -> int:
        """Return how large the tensors of `state` are once every optimizer has begun.

        What an optimizer keeps is counted on a copy of its largest parameter, where it has not begun yet.
        """
        total = sum(tensor.nbytes for tensor in self.state()[0].values())
        for part in self.parts:
            if not part.optimizer.state:
                copy = max(part.parameters.values(), key=Tensor.numel).detach().clone().requires_grad_()
                copy.grad = torch.ones_like(copy)
                trial = self.spec.build([copy], part.rate)
                trial.step()
                kept = sum(value.nbytes for value in trial.state[copy].values() if isinstance(value, Tensor))
                total += kept * sum(p.nbytes for p in part.parameters.values()) // copy.nbytes
        return total

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Set the state that `state` returned."""
        self._set({name: tensors[f"weight|{name}"] for name in self.parameters})
        if self.average:
            for name, value in self.average.values.items():
                value.copy_(tensors[f"ema|{name}"])
        states = {n: (p, part.optimizer.state) for part in self.parts for n, p in part.parameters.items()}
        for full_name, tensor in tensors.items():
            key, name = full_name.split("|", 1)
            if key not in ("weight", "ema"):
                parameter, state = states[name]
                state[parameter][key] = _like(tensor, parameter)
        for name, scalars in numbers["scalars"].items():
            parameter, state = states[name]
            state[parameter].update(scalars)
        for part, saved in zip(self.parts, numbers["settings"], strict=True):
            part.settings.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        self.scale.factor, self.scale.good_steps = numbers["scale"]


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a tensor of the optimizer as the optimizer would have it; its counters stay on the CPU."""
    if tensor.ndim == 0:
        return tensor.clone()
    if tensor.shape == parameter.shape:  # in the same order in memory, so that kernels do the same to the last bit
        return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return tensor.to(parameter.device, copy=True)
