"""Making a run fit into memory: one measure after the other is planned, and the first that is enough is taken."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch

from limner import machine
from limner.errors import UserError
from limner.families.recognise import recognise
from limner.families.source import locate
from limner.forecast import GIB, Forecast, Work, forecast
from limner.machine import Place
from limner.planning import Told, length_of, rows, table
from limner.prepare.check import Checked
from limner.prepare.plan import Plan
from limner.ranks import Ranks
from limner.recipe import Recipe, changed
from limner.watch import Watch

TIGHT = 10
"""A base whose files are less than a tenth of the free memory is trained without asking: nothing takes ten times it."""
SMALL = ("lora", "textual_inversion", "pivotal")
"""Adapters that are small beside the base, whose need has a bound that is known without a plan:"""
BASE_TIMES, RANK_SHARE, PIXEL_VALUES, PROGRAM_BYTES = 1.25, 0.01, 12 * 2**10, 2 * GIB
"""its weights, a share of them for each rank, what a pixel of a batch leaves for the backward pass, and the program.

With SD 1.5 and SDXL, from 256 to 1024 px, the whole is 1.8 to 3 times what runs were measured to take.
"""
WORTH = 0.99
"""A measure that leaves more of the peak than this is not taken."""
SHARES = (0.33, 0.67, True)
"""How many of the UNet's blocks compute again, one after the other."""
DRAWING = ("class pictures", "preview", "validation", "draw")
"""Phases that draw."""


@dataclass(frozen=True)
class Fitted:
    """A recipe that was made to fit, as far as it goes."""

    forecast: Forecast
    chosen: dict[str, Any] = field(default_factory=dict[str, Any])
    """The settings that it took."""

    @property
    def line(self) -> str:
        """Return what was chosen and what comes of it."""
        return f"{', '.join(f'{key}={_toml(value)}' for key, value in self.chosen.items())} -> {about(self.forecast)}"


def about(found: Forecast) -> str:
    """Return what a run needs, in words."""
    return f"about {_gib(found.peak_bytes)}"


def budget_of(recipe: Recipe, at: Place) -> int | None:
    """Return how many bytes the run may take: what `fit` says, else what is free; None where nobody knows.

    Raises:
        UserError: `fit` is no amount of memory.
    """
    if isinstance(recipe.fit, bool) or recipe.fit == "off":
        return machine.free_memory_bytes(at.device)
    number = recipe.fit.strip().lower().removesuffix("b").removesuffix("i").removesuffix("g").strip()
    try:
        return int(float(number) * GIB)
    except ValueError:
        raise UserError(f"fit={recipe.fit!r}: is no amount of memory.", 'Use true, "off", or e.g. fit=8GB.') from None


def fit(planned: Forecast, checked: Checked, steps: int, budget: int) -> Fitted:
    """Take the documented measures in their order until the run fits into `budget` bytes, or none is left."""
    found = Fitted(planned)
    refused: list[Mapping[str, Any]] = []
    while found.forecast.peak_bytes > budget:
        step = next((s for s in _measures(planned.recipe, found.forecast) if s not in refused), None)
        if step is None:
            break
        recipe = changed(found.forecast.recipe, step)
        tried = forecast(recipe, checked, steps, planned.at, slots=planned.slots)
        if _worth(tried, found.forecast):
            found = Fitted(tried, _differences(planned.recipe, recipe, {**found.chosen, **step}))
        else:
            refused.append(step)
    return found


def plan_memory(recipe: Recipe, checked: Checked, length: Plan, *, slots: int = 1) -> Told:
    """Return what a run of this length will need, phase by phase, and how it can be made to fit where it does not.

    With `slots` as many such runs train together.
    """
    at = machine.place(recipe.device, recipe.precision, must_be_here=False)
    budget = budget_of(recipe, at)
    planned = forecast(recipe, checked, length.steps, at, slots=slots)
    found = Fitted(planned) if budget is None else fit(planned, checked, length.steps, budget)
    shown = found.forecast if recipe.fit else planned
    told = rows(shown, length.steps)
    lines = list(table(shown, told))
    fits = None if budget is None else shown.peak_bytes <= budget
    if budget is not None and planned.peak_bytes > budget:
        lines.append(f"fit: {found.line}" if fits else str(too_large(planned, found, budget)))
    return Told(tuple(lines), {
        "steps": length.steps, "exposures": length.exposures, "device": str(at.device), "fits": fits,
        "memory_gib": shown.peak_bytes / GIB, "free_gib": None if budget is None else budget / GIB,
        "disk_gib": shown.disk_bytes / GIB, "fit": found.chosen, "phases": [asdict(row) for row in told],
    })  # fmt: skip


def make_fit(
    recipe: Recipe, checked: Checked, watch: Watch, ranks: Ranks, *, slots: int = 1
) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe as it fits, and what was changed for that; nothing is planned where memory is plenty.

    With `slots` as many such runs train together.

    Raises:
        UserError: the run does not fit; says what it needs, what there is, and what would help.
    """
    at = machine.place(recipe.device, recipe.precision)
    if ranks.count > 1 and recipe.fit not in (False, "off"):
        raise UserError(
            f"fit={_toml(recipe.fit)}: plans for one process, and there are {ranks.count}.", "Leave it out."
        )
    budget = budget_of(recipe, at)
    if (
        recipe.fit == "off"
        or budget is None
        or not (recipe.fit or _may_be_tight(recipe, checked, budget, slots))
        or ranks.count > 1
    ):
        return recipe, {}
    steps = length_of(recipe, checked).steps
    with watch.phase("plan"):
        planned = forecast(recipe, checked, steps, at, slots=slots)
        found = fit(planned, checked, steps, budget) if planned.peak_bytes > budget else Fitted(planned)
    if found.forecast.peak_bytes > budget or (found.chosen and not recipe.fit):
        raise too_large(planned, found, budget)
    if recipe.fit:
        said = found.line if found.chosen else f"nothing to change: {about(planned)}"
        watch.say(f"fit={_toml(recipe.fit)}: {said} of {_gib(budget)}, the most in phase {found.forecast.peak.name}")
    return changed(found.forecast.recipe, {"fit": False}), found.chosen


def too_large(planned: Forecast, found: Fitted, budget: int) -> UserError:
    """Return the refusal of a run that does not fit, with what would help."""
    needs = f"needs {about(planned)} (phase {planned.peak.name}), and {_has(planned, budget)}."
    if found.forecast.peak_bytes <= budget:
        return UserError(needs, f"With fit=true: {found.line}")
    smallest = f"The least that settings make of it: {found.line if found.chosen else about(planned)}."
    return UserError(f"{needs} {smallest}", _last_resort(found.forecast))


@contextmanager
def telling_memory(recipe: Recipe, checked: Checked) -> Iterator[None]:
    """Within this block, memory that runs out is a UserError: what the run needs, and what would help."""
    at = machine.place(recipe.device, recipe.precision)
    budget = budget_of(recipe, at)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not machine.is_out_of_memory(error):
            raise
        clear_frames(error.__traceback__)  # what was computed when it happened is still held there
        raise _ran_out(recipe, checked, at, budget) from error


def _ran_out(recipe: Recipe, checked: Checked, at: Place, budget: int | None) -> UserError:
    """Return what the run needs and what would help, or only that where there is no memory left to find it out."""
    try:
        steps = length_of(recipe, checked).steps
        planned = forecast(recipe, checked, steps, at)
        found = fit(planned, checked, steps, min(budget or planned.peak_bytes, planned.peak_bytes - 1))
    except (RuntimeError, MemoryError) as error:
        if not machine.is_out_of_memory(error):
            raise
        return UserError(f"Out of memory on {at.device}.", "Ask limner plan what the run needs, or set fit=true.")
    better = f"Set {found.line}" if found.chosen else _last_resort(planned)
    return UserError(f"Out of memory on {at.device}: the run needs {about(planned)}.", better)


def slots_that_fit(recipe: Recipe, checked: Checked, most: int) -> int:
    """Return how many such runs, at most `most`, can train together in the memory that there is."""
    at = machine.place(recipe.device, recipe.precision)
    budget, slots = budget_of(recipe, at), most
    if recipe.fit == "off" or budget is None or not _may_be_tight(recipe, checked, budget, slots):
        return slots
    steps = length_of(recipe, checked).steps
    while slots > 1 and forecast(recipe, checked, steps, at, slots=slots).peak_bytes > budget:
        slots //= 2
    return slots


def is_plenty(recipe: Recipe, checked: Checked) -> bool:
    """Return whether a run surely fits into the memory beside the CPU; False where that is not known."""
    at = machine.place(recipe.device, recipe.precision)
    budget, bound = machine.free_memory_bytes(at.device), _bound(recipe, checked, slots=1)
    return at.device.type == "cpu" and budget is not None and bound is not None and bound <= budget


def _may_be_tight(recipe: Recipe, checked: Checked, budget: int, slots: int) -> bool:
    """Return whether it is worth the seconds to plan: the base is large beside the memory for each run on it."""
    size, bound = _base_bytes(recipe), _bound(recipe, checked, slots)
    return (size is None or slots * TIGHT * size > budget) and (bound is None or bound > budget)


def _bound(recipe: Recipe, checked: Checked, slots: int) -> int | None:
    """Return what so many runs together surely do not need more than; None where only a plan knows."""
    size = _base_bytes(recipe)
    draws = recipe.draws_while_training or recipe.prior.active
    if size is None or draws or recipe.adapter.kind not in SMALL:
        return None
    itemsize = machine.place(recipe.device, recipe.precision).dtype.itemsize
    rank = getattr(getattr(recipe.adapter, "lora", recipe.adapter), "rank", 0)
    base = size * itemsize / 2  # files hold two bytes a weight, or more
    pixels = slots * recipe.batch * max(width * height for width, height in checked.shapes)
    return int(base * (BASE_TIMES + slots * RANK_SHARE * rank) + pixels * PIXEL_VALUES * itemsize + PROGRAM_BYTES)


def _base_bytes(recipe: Recipe) -> int | None:
    """Return the size of the files of the base and its partner; None where they are not on this machine."""
    files: list[Path] = []
    for name in filter(None, (recipe.base, recipe.generation.partner[1])):
        path = locate(name)
        if path is None:
            return None
        files += [path] if path.is_file() else recognise(name).path.rglob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _measures(asked: Recipe, found: Forecast) -> Iterator[dict[str, Any]]:
    """Yield the next settings that make the largest phase smaller, the mildest first."""
    recipe, phase = found.recipe, found.peak.name
    if phase in DRAWING and recipe.generation.batch > 1:
        yield {"generation.batch": recipe.generation.batch // 2}
    trains = phase in ("train", "save")
    if trains and not recipe.puts_aside(alone=found.slots == 1):
        yield {"unload": True}
    if trains:
        yield from ({"gradient_checkpointing": share} for share in SHARES if share > recipe.gradient_checkpointing)
    if trains and recipe.batch > 1 and not recipe.optimizer.fused_backward:
        parts = next(n for n in range(2, recipe.batch + 1) if recipe.batch % n == 0)
        yield {"batch": recipe.batch // parts, "accumulate": recipe.accumulate * parts}
    if phase != "draw" and recipe.only_reads_base:  # what is drawn at last has the base as it is
        yield from _storages(recipe, found.at)
    if not trains or recipe.optimizer.kind != "adamw":
        return
    if found.at.device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
        yield {"optimizer.kind": "adamw8bit"}
    if recipe.adapter.kind == "full" and asked.accumulate == 1:
        yield {"optimizer.kind": "adafactor", "optimizer.fused_backward": True, "optimizer.max_grad_norm": 0.0,
               "batch": asked.batch, "accumulate": 1}  # fmt: skip


def _storages(recipe: Recipe, at: Place) -> Iterator[dict[str, Any]]:
    """Yield the next settings that hold the frozen base in less memory: in a byte, on the host, in half a byte."""
    if recipe.base_storage == "as_computed":
        yield {"base_storage": "int8"}
    if at.device.type == "cuda" and not recipe.offload:
        yield {"offload": True}
    if recipe.base_storage in ("int8", "float8"):
        yield {"base_storage": "nf4"}


def _worth(tried: Forecast, before: Forecast) -> bool:
    """Return whether a measure makes the largest phase clearly smaller, be it that another is now the largest."""
    device, name = before.at.device.type, before.peak.name
    now: Work = next(work for work in tried.phases if work.name == name)
    return now.needs(device)[0] < WORTH * before.peak_bytes


def _differences(asked: Recipe, now: Recipe, touched: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that differ from those asked for, of the ones that were touched."""
    chosen: dict[str, Any] = {}
    for key in touched:
        section, _, last = key.rpartition(".")
        then, value = ((getattr(r, section) if section else r) for r in (asked, now))
        if getattr(then, last, None) != getattr(value, last):
            chosen[key] = getattr(value, last)
    return chosen


def _has(planned: Forecast, budget: int) -> str:
    """Return what there is on the device."""
    device, asked = planned.at.device, planned.recipe.fit
    if isinstance(asked, str) and asked != "off":
        return f"fit={asked} allows {_gib(budget)}"
    if device.type != "cuda":
        return f"this machine has {_gib(budget)} free"
    others = torch.cuda.mem_get_info(device)[1] - budget - torch.cuda.memory_reserved(device)
    return f"GPU {device.index or 0} has {_gib(budget)} free ({_gib(others)} used by others)"


def _last_resort(found: Forecast) -> str:
    """Return what is left to the user: settings that change the result."""
    half = "" if found.at.dtype != torch.float32 else "precision=bfloat16, "
    lora = ", or adapter.kind=lora" if found.recipe.adapter.kind == "full" else ""
    return f"Set {half}a smaller resolution{lora}; or free memory on {found.at.device}."


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
