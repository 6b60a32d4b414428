"""What learns: the recipe's adapter on a base, in a training that is ready to begin."""

from __future__ import annotations

from limner.adapters.adapter import SlotSettings
from limner.families.family import Family
from limner.fast import speed_up
from limner.prepare.check import Checked
from limner.prepare.words import words_of
from limner.recipe import Recipe
from limner.train.loop import Slot, Training
from limner.types import Source


def make_training(family: Family, recipe: Recipe, checked: Checked, source: Source, steps: int) -> Training:
    """Attach the recipe's adapter and return its training: what a run does, and what a plan traces without weights.

    `fast` is heeded, and so is `unload`.
    """
    words = words_of(checked, recipe.pictures)
    adapter = recipe.adapter.attach(family, [SlotSettings(recipe.seed, words=words)])
    if recipe.gradient_checkpointing:
        family.compute_again(float(recipe.gradient_checkpointing))
    rates = recipe.adapter.rates(recipe.learning_rate)
    slot = Slot("subject", source, recipe.seed, steps, recipe.learning_rate, rates)
    training = Training(family, adapter, [slot], objective=recipe.objective, optimizer=recipe.optimizer,
                        accumulate=recipe.accumulate, ema=recipe.ema, teacher=recipe.prior.teacher)  # fmt: skip
    if recipe.puts_aside(alone=not family.is_shared):
        family.put_aside("vae", *(() if adapter.learns_text else family.encoders))
    speed_up(training, recipe)
    return training


def unneeded(recipe: Recipe, family: Family) -> tuple[str, ...]:
    """Return the parts that a run surely needs no more when pictures and captions are encoded, where they give way.

    Known before anything is attached; `make_training` knows the rest.
    """
    if not recipe.puts_aside(alone=not family.is_shared):
        return ()
    return ("vae", *(() if recipe.may_need_text_encoders else family.encoders))
