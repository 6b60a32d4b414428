"""All weights learn: DreamBooth as its paper has it (arXiv:2208.12242), or a chosen part of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limner.adapters.adapter import Attachable, Attached, Change, SlotSettings, require_fit, sum_by_group
from limner.adapters.strength import Strength, as_strength
from limner.errors import UserError
from limner.spec import Spec


class Full(Spec):
    """Full fine-tuning: the base's own weights learn, and the result is a whole model."""

    kind: Literal["full"] = "full"
    targets: str | tuple[str, ...] = "all"
    """Which weights learn: "all", or a list of patterns such as ["*.attn2.*"] (cross-attention only)."""
    text_encoder: bool = False
    """Learn in the text encoder too: a likeness gets better, the prompt is followed less."""
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the text encoder; left out, that of the run. Usually half of it or less."""
    save_precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Number format of the finished model's files; a checkpoint for resuming always keeps float32."""

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Return the learning rate of each group."""
        text = self.text_encoder_learning_rate or learning_rate
        return {"unet": learning_rate, "text_encoder": text, "text_encoder_2": text}

    def attach(self, base: Attachable, slots: Sequence[SlotSettings]) -> FullWeights:
        """Let the base's weights learn, in float32; there is one slot, because there is one set of weights.

        Raises:
            UserError: several slots, or a pattern that matches nothing.
        """
        if len(slots) != 1:
            raise UserError(
                f"adapter.kind=full: trains one subject at a time, not {len(slots)}.",
                "Use adapter.kind=lora to train many on one base.",
            )
        modules = {root: m for root, m in base.modules.items() if root == "unet" or self.text_encoder}
        names = [f"{root}.{name}" for root, module in modules.items() for name, _ in module.named_parameters()]
        patterns = (self.targets,) if isinstance(self.targets, str) else self.targets
        chosen: set[str] = set()
        for pattern in patterns:
            matched = names if self.targets == "all" else fnmatch.filter(names, pattern)
            chosen.update(matched)
            if not matched:
                raise UserError(
                    f"adapter.targets: {pattern!r} matches none of the base's {len(names)} weights.",
                    f'Use "all", or patterns of names such as {names[0]}.',
                )
        return FullWeights(modules, chosen)


class FullWeights(Attached):
    """The base's own parameters, turned to float32 and set free; what they were is kept aside, on the CPU."""

    slots = 1

    def __init__(self, modules: Mapping[str, nn.Module], learning: set[str]) -> None:
        everything = {f"{root}.{name}": p for root, m in modules.items() for name, p in m.named_parameters()}
        self.learns_text = any(name.startswith("text_encoder") for name in learning)
        self._pristine = {name: p.detach().cpu() for name, p in everything.items()}  # on the CPU this copies nothing
        self._everything = everything
        self._learning = {name: p for name, p in everything.items() if name in learning}
        self._tuned: dict[str, Tensor] = {}
        self._enabled, self._strength = True, Strength()
        for name, parameter in everything.items():
            parameter.data = parameter.data.to(torch.float32, copy=True)
            parameter.requires_grad_(name in learning)

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        return dict(self._learning)

    def zero_grad(self) -> None:
        for parameter in self._learning.values():
            parameter.grad = None

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return a float32 copy of every weight that learns, by its name in the base."""
        return {name: self._trained(name).detach().clone() for name in self._learning}

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        require_fit(self._learning, state)
        with torch.no_grad():
            for name in self._learning:
                self._trained(name).copy_(state[name])
        self._show()

    def changes(self, slot: int = 0) -> dict[str, Change]:
        moved = ((n, self._trained(n).detach().cpu() - self._pristine[n].float()) for n in self._learning)
        return sum_by_group((n, Change(1, delta.numel(), float(delta.norm()))) for n, delta in moved)

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        """Do nothing: there is one slot, and every row is its."""

    def set_strength(self, strength: Strength | float) -> None:
        self._strength = as_strength(strength)
        self._show()

    def enable(self, enabled: bool) -> None:
        self._enabled = enabled
        self._show()

    def detach(self) -> None:
        for name, parameter in self._everything.items():
            parameter.grad = None
            parameter.requires_grad_(False)
            parameter.data = self._pristine[name].to(parameter.device)
        self._tuned.clear()

    def merge(self, slot: int = 0) -> None:
        """Do nothing: the weights are the base's own already."""

    def unmerge(self) -> None:
        """Do nothing, as `merge`."""

    def _trained(self, name: str) -> Tensor:
        """Return the trained weight, also while the module shows another."""
        return self._tuned.get(name, self._everything[name].data)

    def _show(self) -> None:
        """Put into the modules what strength and switch ask for; trained weights that are not shown are kept aside."""
        strength = self._strength if self._enabled else Strength(0.0)
        if strength != Strength() and not self._tuned:
            self._tuned = {name: p.data for name, p in self._everything.items()}
        for name, tuned in self._tuned.items():
            shown = strength.of(name)
            parameter = self._everything[name]
            pristine = self._pristine[name].to(tuned.device)
            if shown == 0.0:
                parameter.data = pristine
            elif shown == 1.0:
                parameter.data = tuned
            else:
                parameter.data = torch.lerp(pristine.float(), tuned, shown)
        if strength == Strength():
            self._tuned = {}
