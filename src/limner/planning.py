"""The plan of a run: how long it is and what it takes, said before it begins."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from limner.errors import UserError
from limner.pictures.cache import default_cache
from limner.prepare.check import Checked
from limner.prepare.plan import Plan, batch_notes, plan_length
from limner.recipe import Recipe
from limner.report.numbers import in_time
from limner.rundir import read_json, write_json
from limner.watch import Watch


def plan_run(recipe: Recipe, checked: Checked, num_prior_examples: int, watch: Watch) -> Plan:
    """Derive the length of the run from the one that was given, and say it."""
    plan = plan_length(
        checked, batch=recipe.batch, accumulate=recipe.accumulate, steps=recipe.steps, epochs=recipe.epochs,
        exposures=recipe.exposures, num_prior_examples=num_prior_examples,
    )  # fmt: skip
    warmup = recipe.optimizer.warmup(plan.steps)
    every = recipe.checkpoint.every_steps
    pace = _known_paces().get(_pace_key(recipe))
    checkpoints = -(-plan.steps // every) if every else 1
    parts = [
        f"warm-up {warmup} steps" if warmup else "",
        f"{checkpoints} checkpoints" if checkpoints > 1 else "1 checkpoint, at the end",
        f"about {in_time(pace * plan.steps)}, by the last such run here" if pace else "time: after the first steps",
    ]
    for line in (plan.line, ", ".join(filter(None, parts)), *batch_notes(checked, recipe.batch)):
        watch.say(line)
    return plan


def _known_paces() -> dict[str, float]:
    """Return the seconds per step of the runs on this machine; what cannot be read is forgotten."""
    try:
        return read_json(default_cache() / "paces.json")
    except UserError:
        return {}


def _pace_key(recipe: Recipe) -> str:
    """Return what decides how long a step takes: base, device, size of the batch, and what learns."""
    sizes = (recipe.resolution, recipe.batch, recipe.accumulate, recipe.prior.active, recipe.gradient_checkpointing)
    return f"{recipe.base} {recipe.device} {recipe.precision} {sizes} {recipe.adapter.model_dump_json()}"


def keep_pace(recipe: Recipe, seconds: Sequence[float]) -> None:
    """Remember the median step of this run, for the plan of the next."""
    paces = {**_known_paces(), _pace_key(recipe): statistics.median(seconds)}
    write_json(default_cache() / "paces.json", paces)
