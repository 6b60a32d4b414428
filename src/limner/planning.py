"""The plan of a run: how long it is and what it takes, said before it begins."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from limner.errors import UserError
from limner.files import default_cache
from limner.forecast import GIB, Forecast, Work
from limner.prepare.check import Checked
from limner.prepare.plan import Plan, batch_notes, plan_length
from limner.rates import Rates, measure_rates
from limner.recipe import Recipe
from limner.report.numbers import in_time
from limner.rundir import read_json, write_json
from limner.watch import Watch


def plan_run(recipe: Recipe, checked: Checked, num_prior_examples: int, watch: Watch) -> Plan:
    """Derive the length of the run from the one that was given, and say it."""
    plan = length_of(recipe, checked, num_prior_examples)
    warmup = recipe.optimizer.warmup(plan.steps)
    every = recipe.checkpoint.every_steps
    pace = known_pace(recipe)
    checkpoints = -(-plan.steps // every) if every else 1
    parts = [
        f"warm-up {warmup} steps" if warmup else "",
        f"{checkpoints} checkpoints" if checkpoints > 1 else "1 checkpoint, at the end",
        f"about {in_time(pace * plan.steps)}, by the last such run here" if pace else "time: after the first steps",
    ]
    for line in (plan.line, ", ".join(filter(None, parts)), *batch_notes(checked, recipe.batch)):
        watch.say(line)
    return plan


def length_of(recipe: Recipe, checked: Checked, num_prior_examples: int = 0) -> Plan:
    """Return the length of the run in every unit, from the one that was given."""
    return plan_length(
        checked, batch=recipe.batch, accumulate=recipe.accumulate, steps=recipe.steps, epochs=recipe.epochs,
        exposures=recipe.exposures, num_prior_examples=num_prior_examples,
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One phase as it is told."""

    phase: str
    memory_gib: float
    """On the device."""
    host_gib: float
    seconds: float | None
    """None where the device is not here to be timed, and for loading, which the disk decides."""
    time_from: str
    """Where the time is from: counted work at measured speed, or the last such run."""
    mostly: str
    """What the memory is, in GiB."""


@dataclass(frozen=True)
class Told:
    """A forecast as people and as programs read it."""

    lines: tuple[str, ...]
    facts: dict[str, Any]


def rows(found: Forecast, steps: int) -> list[Row]:
    """Return every phase with its memory and its time: the pace of the last such run here, else counted work."""
    device = found.at.device
    here = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
    rates = {dtype: measure_rates(device, dtype) for dtype in _formats(found)} if here else {}
    pace = known_pace(found.recipe) if found.slots == 1 else None
    told: list[Row] = []
    for work in found.phases:
        memory, host = (size / GIB for size in work.needs(device.type))
        seconds = _seconds(work, rates) if here and work.costs else None
        known = pace is not None and work.name == "train"
        if known and pace:
            seconds = pace * steps
        told.append(Row(work.name, memory, host, seconds, "last run" if known else "counted", work.mostly))
    return told


def _formats(found: Forecast) -> set[torch.dtype]:
    counted = {dtype for work in found.phases for cost, _ in work.costs for dtype in cost.flops}
    return {found.at.dtype, torch.float32, *counted}


def _seconds(work: Work, rates: dict[torch.dtype, Rates]) -> float:
    """Return about how long a phase takes, its operations each at the speed of their number format."""
    seconds = 0.0
    for cost, times in work.costs:
        own = rates[torch.float32].seconds(0, cost.moved_bytes, cost.kernels)
        own += sum(rates[dtype].seconds(flops, 0, 0) for dtype, flops in cost.flops.items())
        seconds += times * own
    return seconds


def table(found: Forecast, told: Sequence[Row]) -> Iterator[str]:
    """Yield the forecast as lines of text: a row a phase, then disk and total."""
    on_gpu = found.at.device.type != "cpu"
    host = f"{'host GiB':>10}" if on_gpu else ""
    yield f"{'phase':<16}{'GiB':>7}{host}{'time':>14}   of the GiB"
    for row in told:
        host = f"{row.host_gib:>10.2f}" if on_gpu else ""
        time = "" if row.seconds is None else ("" if row.time_from == "last run" else "~") + in_time(row.seconds)
        yield f"{row.phase:<16}{row.memory_gib:>7.2f}{host}{time:>14}   {row.mostly}"
    run = [row for row in told if row.phase != "draw"]
    known = [row.seconds for row in run if row.seconds is not None]
    total = f", training and all before it ~{in_time(sum(known))}" if known else ""
    disk = found.disk_bytes / GIB
    yield f"needs {found.peak_bytes / GIB:.1f} GiB on {found.at.device}, {disk:.2f} GiB of disk{total}"
    if on_gpu:
        yield "on a GPU: fused attention, 0.5 GiB for CUDA itself; traced, not measured on this machine"
    if any(row.time_from == "counted" and row.seconds is not None for row in told):
        yield "times with ~ are counted work at the speed that this machine has just now: a rough order"


def known_pace(recipe: Recipe) -> float | None:
    """Return the seconds per step of the last such run on this machine; None where there was none."""
    return _known_paces().get(_pace_key(recipe))


def _known_paces() -> dict[str, float]:
    """Return the seconds per step of the runs on this machine; what cannot be read is forgotten."""
    try:
        return read_json(default_cache() / "paces.json")
    except UserError:
        return {}


def _pace_key(recipe: Recipe) -> str:
    """Return what decides how long a step takes: base, device, size of the batch, and what learns."""
    sizes = (recipe.resolution, recipe.batch, recipe.accumulate, recipe.prior.active, recipe.gradient_checkpointing,
             recipe.base_storage)  # fmt: skip
    return f"{recipe.base} {recipe.device} {recipe.precision} {sizes} {recipe.adapter.model_dump_json()}"


def keep_pace(recipe: Recipe, seconds: Sequence[float]) -> None:
    """Remember the median step of this run, for the plan of the next."""
    paces = {**_known_paces(), _pace_key(recipe): statistics.median(seconds)}
    write_json(default_cache() / "paces.json", paces)
