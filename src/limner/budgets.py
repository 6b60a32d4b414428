"""Equal budgets for the arms of a comparison: the same steps, the same seconds by a measured pace, the same memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from limner.arms import Arm
from limner.drawing import draw_class, load_base
from limner.errors import UserError
from limner.files import passing
from limner.generate.draw import check_resolution
from limner.metrics.study import ArmBudget, Budget, BudgetKind
from limner.recipe import LENGTHS, Recipe, changed
from limner.refining import load_partner
from limner.run import train
from limner.watch import Watch

PROBE_STEPS = 12
"""Steps that the pace of an arm is measured on; their median counts."""
AMOUNTS = {"steps": "steps", "time": "seconds", "memory": "fit"}
"""The setting that says how much, by kind of budget."""
UNTIMED = {"checkpoint.every_steps": 0, "checkpoint.choose": "last", "validation.every_steps": 0, "tracking": (),
           "preview.every_steps": 0, "optimizer.warmup_steps": 0, "optimizer.warmup_fraction": 0.0}  # fmt: skip
"""What the probe does without: the pace is that of the steps."""


def read_budget(settings: Mapping[str, Any], arms: list[Arm]) -> tuple[Budget, dict[str, Any]]:
    """Take `budget` and `seconds` out of the settings; return the budget, and the settings that the arms share.

    Raises:
        UserError: no such budget, no amount, or an arm with another amount of its own.
    """
    shared = dict(settings)
    kind, seconds = shared.pop("budget", "own"), shared.pop("seconds", None)
    kinds = get_args(BudgetKind)
    if kind not in kinds:
        raise UserError(f"budget={kind}: is not a budget.", f"Use {', '.join(kinds[1:])}; or leave it out.")
    if seconds is not None and kind != "time":
        raise UserError(f"seconds={seconds}: has no effect without budget=time.", "Leave it out, or set budget=time.")
    if kind == "own":
        return Budget(), shared
    key = AMOUNTS[kind]
    amount = seconds if kind == "time" else shared.get(key)
    if amount is None or isinstance(amount, bool) or (kind == "time" and not _is_positive(seconds)):
        example = {"steps": "steps=800", "time": "seconds=600", "memory": "fit=8GB"}[kind]
        raise UserError(f"budget={kind}: needs to know how much.", f"Give the amount, such as {example}.")
    equal = {"fit"} if kind == "memory" else LENGTHS
    if kind == "time" and equal & shared.keys():
        given = sorted(equal & shared.keys())[0]
        raise UserError(f"{given}: has no effect with budget=time, which finds the steps.", "Leave it out.")
    for arm in arms:
        for name in sorted(equal & arm.settings.keys()):
            raise UserError(f"arm {arm.name}: sets {name}, and budget={kind} makes it equal for all.", "Leave it out.")
    unit = {"steps": f"{amount} steps", "time": f"{amount:g} s" if kind == "time" else "", "memory": str(amount)}[kind]
    return Budget(kind=kind, amount=unit), shared


def seconds_of(budget: Budget) -> float:
    """Return how long every arm of a budget of time trains."""
    return float(budget.amount.removesuffix(" s"))


def measure(recipe: Recipe, pictures: list[Path], seconds: float, place: Path, watch: Watch) -> ArmBudget:
    """Return how many steps an arm takes in so many seconds, its class pictures included, by a short probe.

    A few steps are trained and one batch of class pictures is drawn in `place`, where nothing stays. The steps are then
    a number in the recipe, so that the run can be repeated and resumed exactly.

    Raises:
        UserError: the seconds are over before the first step.
    """
    with passing(place) as folder:
        drawn, class_seconds = None, 0.0
        if recipe.prior.active:
            drawn = folder / "class"
            class_seconds = _time_class_pictures(recipe, drawn, watch) * recipe.prior.count
        with watch.phase("pace"):
            probe = changed(recipe, {"steps": PROBE_STEPS, **UNTIMED})
            steps = train(pictures, recipe=probe, class_pictures=drawn, run=folder / "run").read_log("step")
    pace = statistics.median(row["seconds"] for row in steps)
    count = int((seconds - class_seconds) / pace)
    if count < 1:
        raise UserError(
            f"the time is over before the first step: {class_seconds:.0f} s of class pictures, {pace:.2g} s a step.",
            "Give more seconds, or fewer class pictures (prior.count).",
        )
    return ArmBudget(steps=count, step_seconds=pace, class_seconds=class_seconds)


def _time_class_pictures(recipe: Recipe, out: Path, watch: Watch) -> float:
    """Draw a batch of class pictures into `out`; return the seconds that one takes."""
    family = load_base(recipe, Watch())
    if recipe.generation.begun_by:
        load_partner(family, recipe, Watch())
    count = min(recipe.generation.batch, recipe.prior.count)
    with watch.phase("pace of drawing"):
        started = time.perf_counter()
        draw_class(family, recipe, out, count, check_resolution(family, recipe.resolution), watch)
        return (time.perf_counter() - started) / count


def _is_positive(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0
