"""Faster ways of taking the very same steps: what they need, and how a training is brought to take them."""

from __future__ import annotations

import functools

from limner import machine
from limner.adapters.lora import LoRA
from limner.errors import UserError
from limner.objectives import Denoising
from limner.recipe import Recipe
from limner.train.compiled import Compiled
from limner.train.loop import Training
from limner.train.optimizer import AdamW
from limner.train.recorded import CudaGraph


def check_fast(recipe: Recipe) -> None:
    """Refuse a fast way that the machine does not have, or that does not take the steps of this recipe.

    Raises:
        UserError: says what is needed, and what was found.
    """
    if recipe.fast == "off":
        return
    device = machine.place(recipe.device, recipe.precision, must_be_here=False).device
    if "graph" in recipe.fast:
        _check_graph(recipe, device.type)
    if "compile" in recipe.fast:
        machine.require_compiler(f"fast={recipe.fast!r}", device)


def _check_graph(recipe: Recipe, device: str) -> None:
    if device != "cuda":
        raise UserError(
            f"fast={recipe.fast!r}: needs an NVIDIA GPU, and this run computes on {device}.",
            "Leave it out: the steps are the same, one operation after the other.",
        )
    wrong = {
        f"adapter.kind={recipe.adapter.kind}": not isinstance(recipe.adapter, LoRA),
        "adapter.text_encoder=true": getattr(recipe.adapter, "text_encoder", False),
        f"objective.kind={recipe.objective.kind}": not isinstance(recipe.objective, Denoising),
        f"optimizer.kind={recipe.optimizer.kind}": not isinstance(recipe.optimizer, AdamW),
        "optimizer.fused_backward=true": recipe.optimizer.fused_backward,
    }
    if found := [setting for setting, is_wrong in wrong.items() if is_wrong]:
        raise UserError(
            f"fast={recipe.fast!r}: records the steps of a LoRA on the UNet that learns to denoise with AdamW, and "
            f"this recipe has {' and '.join(found)}.",
            "Leave fast out, or change that.",
        )


def speed_up(training: Training, recipe: Recipe) -> None:
    """Have a training take its steps in the recipe's fast way; one that is only planned takes them as they are."""
    family = training.family
    if recipe.fast == "off" or family.device.type == "meta":
        return
    if "compile" in recipe.fast:
        training.passes.compiled = Compiled(family.unet)
    if "graph" in recipe.fast:
        training.record(functools.partial(CudaGraph, family.device))
