"""What came of measuring side by side: rows, ratios with their spread, and whether what must hold holds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.many_at_once import spread
from benchmarks.watched import Watched, last_lines

LIMNER, FLOOR = "Limner", "bare floor"
Run = dict[str, Any]
"""What one contender took in one round, or {"error": ...}."""
Runs = Sequence[dict[str, Run]]
"""By round, what each contender took."""
MEASURES = (
    "cpu_s_per_step", "wall_s_per_step", "first_step_cpu_s", "first_step_wall_s", "peak_gb", "peak_anonymous_gb",
)  # fmt: skip


@dataclass(frozen=True)
class Must:
    """Limner's figure is to be at most so many times another's."""

    measure: str
    most: float
    beside: str
    """A contender's name; empty for the peer whose figure is least."""
    words: str


MUSTS = (
    Must("cpu_s_per_step", 1.05, FLOOR, "processor seconds per step, of the bare floor's"),
    Must("cpu_s_per_step", 1.0, "", "processor seconds per step, of the fastest peer's"),
    Must("first_step_cpu_s", 0.8, "", "processor seconds to the end of the first step, of the fastest peer's"),
    Must("peak_gb", 0.7, "", "peak memory, of the lowest peer's"),
    Must("peak_anonymous_gb", 0.7, "", "peak anonymous memory, of the lowest peer's"),
)


def row_of(seen: Watched, command: str) -> Run:
    """Return what a contender took: steps by the median after the first, set-up to the end of the first."""
    moments = sorted(seen.steps.items())
    if seen.code or len(moments) < 2:
        why = f"exit code {seen.code}" if seen.code else f"{len(moments)} steps were seen"
        return {"error": f"{why}: {last_lines(seen.said)}", "command": command}
    between = [
        ((after.wall_s - then.wall_s) / (to - begin), (after.cpu_s - then.cpu_s) / (to - begin))
        for (begin, then), (to, after) in pairwise(moments)
    ]
    _, first = moments[0]
    return {
        "cpu_s_per_step": round(statistics.median(cpu for _, cpu in between), 3),
        "wall_s_per_step": round(statistics.median(wall for wall, _ in between), 3),
        "cpu_s_of_steps": [round(cpu, 3) for _, cpu in between],
        "first_step_cpu_s": round(first.cpu_s, 2), "first_step_wall_s": round(first.wall_s, 2),
        "peak_gb": round(seen.peak_gb, 3), "peak_anonymous_gb": round(seen.peak_anonymous_gb, 3),
        "whole_cpu_s": round(seen.end.cpu_s, 1), "whole_wall_s": round(seen.end.wall_s, 1), "command": command,
    }  # fmt: skip


def ratios(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Return Limner's figures as ratios to every other's, round by round: median, least and most."""
    others = dict.fromkeys(name for row in runs for name in row if name != LIMNER)
    found = {name: {m: _ratio(runs, m, name) for m in MEASURES} for name in others}
    return {name: {m: value for m, value in of.items() if value} for name, of in found.items()}


def musts(runs: Runs) -> list[dict[str, Any]]:
    """Return what must hold: the ratio, who it is to, and whether it holds; `holds` is None where none can be had."""
    told: list[dict[str, Any]] = []
    for must in MUSTS:
        beside = must.beside or least(runs, must.measure)
        ratio = _ratio(runs, must.measure, beside)
        holds = ratio["median"] <= must.most if ratio else None
        told.append({"what": must.words, "at_most": must.most, "beside": beside, "ratio": ratio, "holds": holds})
    return told


def least(runs: Runs, measure: str) -> str:
    """Return the peer whose median of a measure is least; empty where no peer ran."""
    names = dict.fromkeys(name for row in runs for name in row if name not in (LIMNER, FLOOR))
    medians = {name: statistics.median(of) for name in names if (of := _figures(runs, measure, name))}
    return min(medians, key=medians.__getitem__, default="")


def _figures(runs: Runs, measure: str, name: str) -> list[float]:
    return [row[name][measure] for row in runs if measure in row.get(name, {})]


def _ratio(runs: Runs, measure: str, name: str) -> dict[str, float]:
    """Return Limner's figure as a ratio to another's of the same round: its spread over the rounds that have both."""
    both = [(row[LIMNER], row[name]) for row in runs if LIMNER in row and name in row]
    found = [own[measure] / other[measure] for own, other in both if measure in own and measure in other]
    return spread(found) if found else {}


def table(runs: Runs) -> Iterator[str]:
    """Yield lines to read: the median figures of each contender, and what must hold."""
    names = dict.fromkeys(name for row in runs for name in row)
    yield f"{'median of ' + str(len(runs)):<38}" + "".join(f"{m.removesuffix('_gb'):>19}" for m in MEASURES)
    for name in names:
        figures = [_figures(runs, measure, name) for measure in MEASURES]
        if all(figures):
            yield f"{name:<38}" + "".join(f"{statistics.median(of):>19.2f}" for of in figures)
        for row in runs:
            if "error" in row.get(name, {}):
                yield f"{name:<38}{row[name]['error']}"
    for must in musts(runs):
        ratio, holds = must["ratio"], {True: "yes", False: "no", None: "not measured"}[must["holds"]]
        told = f"{ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f})" if ratio else "-"
        yield f"{must['what']} ({must['beside'] or 'no peer'}): {told}, at most {must['at_most']}: {holds}"
