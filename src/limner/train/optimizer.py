"""How weights follow gradients: the optimizers by name, and the course of the learning rate."""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limner.errors import UserError
from limner.spec import Spec


class Optimizer(Spec, ABC):
    """What all optimizers share: the course of the learning rate, and what happens to gradients before it counts."""

    package: ClassVar[tuple[str, str, str] | None] = None
    """Module, package and Limner's extra of an optimizer that does not come with torch or transformers."""
    averages: ClassVar[bool] = False
    """True where weights are judged and saved as an average that the optimizer keeps."""
    finds_learning_rate: ClassVar[bool] = False
    """True where the recipe's learning rate only multiplies the one that the optimizer finds."""

    kind: str
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial"] = "constant"
    """Course of the learning rate after the warm-up: constant, or falling to zero in a line, along a cosine, along
    `cycles` cosines one after the other, or as (1 - progress) ** `power`."""
    cycles: int = Field(default=3, ge=1)
    """How many cosines schedule=cosine_restarts has."""
    power: float = Field(default=2.0, gt=0)
    """Exponent of schedule=polynomial."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    """The same as a share of the run, in [0, 1). Give one of the two."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients of a slot longer than this are scaled down to it; 0 is off."""
    fused_backward: bool = False
    """Update each weight as soon as its gradient is there, and free the gradient: for adapter.kind=full on a card that
    cannot hold all gradients at once. Needs max_grad_norm=0 and accumulate=1."""

    @abstractmethod
    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer over one group of a slot's parameters."""

    def check(self, *, learning_rate: float, accumulate: int) -> None:
        """Refuse what does not go together, and a package that is missing."""
        if self.package and importlib.util.find_spec(self.package[0]) is None:
            _, package, extra = self.package
            message = f"optimizer.kind={self.kind!r} needs {package}, which is not installed:"
            raise UserError(message, f"pip install 'limner[{extra}]'")
        if self.warmup_steps and self.warmup_fraction:
            raise UserError(
                f"optimizer.warmup_steps={self.warmup_steps} and optimizer.warmup_fraction={self.warmup_fraction:g} "
                "say the same thing twice.",
                "Give one of them.",
            )
        if self.fused_backward and (accumulate > 1 or self.max_grad_norm):
            found = f"accumulate={accumulate}" if accumulate > 1 else f"optimizer.max_grad_norm={self.max_grad_norm:g}"
            needed = "accumulate=1" if accumulate > 1 else "optimizer.max_grad_norm=0"
            raise UserError(
                f"optimizer.fused_backward=true frees each gradient at once, and {found} needs them all together.",
                f"Set {needed}, or leave fused_backward out.",
            )
        if self.finds_learning_rate and learning_rate < 0.1:
            raise UserError(
                f"learning_rate={learning_rate:g} is only a factor with optimizer.kind={self.kind!r}, which finds the "
                "learning rate itself.",
                "Set learning_rate=1.",
            )

    def warmup(self, steps: int) -> int:
        """Return how many of a run's steps the learning rate rises; a warm-up as long as the run is a UserError."""
        warmup = self.warmup_steps or round(self.warmup_fraction * steps)
        if warmup and warmup >= steps:
            raise UserError(
                f"optimizer.warmup_steps={warmup} is not shorter than the run ({steps} steps).",
                "Set fewer, or a share of the run: optimizer.warmup_fraction=0.1.",
            )
        return warmup

    def factor(self, step: int, steps: int) -> float:
        """Return the multiple of the learning rate, in (0, 1], at `step` (counted from 1) of `steps`."""
        warmup = self.warmup(steps)
        if step <= warmup:
            return step / (warmup + 1)
        progress = (step - 1 - warmup) / (steps - warmup)
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "polynomial":
            return (1 - progress) ** self.power
        if self.schedule == "constant":
            return 1.0
        cycles = self.cycles if self.schedule == "cosine_restarts" else 1
        return 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1)))


class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101), torch's own."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of the gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of the squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient."""

    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return self._build(parameters, learning_rate)

    def fused(self, parameter: Tensor, learning_rate: Float[Tensor, ""]) -> torch.optim.Optimizer:
        """Return the same over one parameter in one kernel, which reads the learning rate when it runs."""
        return self._build([parameter], learning_rate, fused=True, capturable=True)

    def _build(self, parameters: Sequence[Tensor], learning_rate: float | Tensor, **how: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            **how,
        )


class AdamW8bit(Optimizer):
    """AdamW with its state in 8 bits (arXiv:2110.02861): 2 bytes a weight instead of 8. Needs bitsandbytes."""

    package: ClassVar[tuple[str, str, str] | None] = ("bitsandbytes", "bitsandbytes", "lowmem")
    kind: Literal["adamw8bit"] = "adamw8bit"
    weight_decay: float = Field(default=0.01, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of the gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of the squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient."""

    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW8bit as Library

        if not all(p.is_contiguous() for p in parameters):  # the library would train a copy of such a weight
            raise UserError(
                "optimizer.kind='adamw8bit' cannot train stacked slots of different ranks.",
                "Give all the same rank, or use optimizer.kind=adamw.",
            )
        return Library(
            parameters,
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )


class Adafactor(Optimizer):
    """Keeps row and column means of the squared gradient only (arXiv:1804.04235), for little memory."""

    kind: Literal["adafactor"] = "adafactor"
    weight_decay: float = Field(default=0.0, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """The squared gradient's mean has decay 1 - step ** -decay: larger forgets less."""
    clip_threshold: float = Field(default=1.0, gt=0)
    """Updates of a weight whose root mean square is above this are scaled down to it."""
    scale_parameter: bool = False
    """Multiply the learning rate by each weight's own root mean square; off, `learning_rate` is what it says."""

    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        # not torch.optim.Adafactor: that one always scales by the weight's size, which stalls a LoRA that begins at 0
        from transformers.optimization import Adafactor as Library

        return Library(
            parameters,
            lr=learning_rate,
            clip_threshold=self.clip_threshold,
            decay_rate=-self.decay,
            weight_decay=self.weight_decay,
            scale_parameter=self.scale_parameter,
            relative_step=False,
        )


class Prodigy(Optimizer):
    """AdamW that finds its learning rate itself (arXiv:2306.06101), one for each group; set learning_rate=1."""

    package: ClassVar[tuple[str, str, str] | None] = ("prodigyopt", "prodigyopt", "optimizers")
    finds_learning_rate: ClassVar[bool] = True
    kind: Literal["prodigy"] = "prodigy"
    fused_backward: Literal[False] = False
    """Not possible: the learning rate is found from all gradients together."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of the gradient."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the mean of the squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient."""
    d0: float = Field(default=1e-6, gt=0)
    """Learning rate to begin the search at."""
    d_coef: float = Field(default=1.0, gt=0)
    """Multiplies what is found: 0.5 is more careful, 2 bolder."""
    bias_correction: bool = True
    """Correct the means for their beginning at zero."""
    safeguard_warmup: bool = True
    """Keep a warm-up from making the found learning rate too large."""

    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        from prodigyopt import Prodigy as Library

        optimizer = Library(
            parameters,
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            d0=self.d0,
            d_coef=self.d_coef,
            use_bias_correction=self.bias_correction,
            safeguard_warmup=self.safeguard_warmup,
        )
        optimizer.param_groups[0]["weight_decay"] = self.weight_decay  # given to the constructor, it prints a line
        return optimizer


class ScheduleFree(Optimizer):
    """AdamW with an average of the weights in the place of a schedule (arXiv:2405.15682)."""

    package: ClassVar[tuple[str, str, str] | None] = ("schedulefree", "schedulefree", "optimizers")
    averages: ClassVar[bool] = True
    kind: Literal["schedule_free"] = "schedule_free"
    schedule: Literal["constant"] = "constant"
    """Nothing but a warm-up: the average takes the place of a falling learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    beta1: float = Field(default=0.9, gt=0, lt=1)
    """How near to the average the gradient is taken: 1 is at the average."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of the squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient."""

    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        from schedulefree import AdamWScheduleFree as Library

        optimizer = Library(
            parameters,
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )
        optimizer.train()
        return optimizer


class Lion(Optimizer):
    """Steps by the sign of the gradient's mean (arXiv:2302.06675); wants 1/3 to 1/10 of AdamW's learning rate."""

    package: ClassVar[tuple[str, str, str] | None] = ("lion_pytorch", "lion-pytorch", "optimizers")
    kind: Literal["lion"] = "lion"
    weight_decay: float = Field(default=0.03, ge=0)
    """Pulls weights towards zero by this share of the learning rate each step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """How much of the mean, against the newest gradient, decides the step."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the mean of the gradient."""

    def build(self, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        from lion_pytorch import Lion as Library

        return Library(parameters, lr=learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay)
