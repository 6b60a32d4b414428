"""What training cost: counted parameters, bytes, seconds and memory, in words that a person reads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limner.report.material import Trained
from limner.report.numbers import in_bytes, in_count, in_time

LEAST_RATIO = 1.5
"""Below it "fewer parameters than the base" would say nothing."""
CLEARLY = 1.2
"""How much more the next arm must cost before one is called the cheapest: times are measured once."""


@dataclass(frozen=True)
class Figures:
    """What one arm's folder can tell of its cost; None where it cannot."""

    arm: str
    trained: int | None
    """Parameters that learn."""
    base: int | None
    """Parameters of the base's UNet."""
    file: str
    """Name of what was learned."""
    file_bytes: float | None
    steps: int
    step_s: float | None
    """Median."""
    train_s: float
    class_s: float
    """Seconds that the class pictures took."""
    train_memory_gib: float
    """The peak while it trained."""
    chosen_step: int = 0
    """The step that the result is of, where one was looked for; else 0."""
    chosen_s: float = 0.0
    """Seconds of the steps up to that one."""

    @property
    def times_fewer(self) -> float | None:
        """Return how many times fewer parameters learn than the base has."""
        return self.base / self.trained if self.trained and self.base else None

    @property
    def total_s(self) -> float:
        """Return the seconds of training, class pictures included."""
        return self.train_s + self.class_s


@dataclass(frozen=True)
class Cost:
    """One figure with its unit and what it is."""

    figure: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class CostCell:
    """One arm's figure in a row of several, and its share of the row's largest in per cent."""

    arm: str
    figure: str
    detail: str
    share: float


@dataclass(frozen=True)
class Phase:
    """One phase of the run."""

    name: str
    seconds: float
    time: str
    share: float
    """Of the longest phase, in per cent."""
    memory: str


def figures(trained: Sequence[Trained]) -> list[Figures]:
    """Return every arm's figures.

    Class pictures are drawn once and kept for later runs; their seconds count for every arm that learned from them.
    """
    drawn: dict[frozenset[str], float] = {}
    for one in trained:
        drawn[_class_set(one)] = max(drawn.get(_class_set(one), 0.0), _seconds(one, "class pictures"))
    return [_figures(one, drawn[_class_set(one)] if one.class_pictures else 0.0) for one in trained]


def costs(material: Trained) -> list[Cost]:
    """Return the figures of a run that stands alone."""
    found: list[Cost] = []
    (own,) = figures([material])
    if own.trained and own.base and own.times_fewer:
        detail = f"{own.trained:,} against the base's {own.base:,}, counted in this run"
        if own.times_fewer >= LEAST_RATIO:
            found.append(Cost(f"{own.times_fewer:,.0f}×", "fewer trained parameters than the base has", detail))
        else:
            found.append(Cost(in_count(own.trained), "trained parameters", detail))
    if own.file_bytes:
        what = "the whole model" if own.file == "model" else "adapter file"
        found.append(Cost(in_bytes(own.file_bytes), what, own.file))
    if own.train_s:
        detail = f"{own.steps:,} steps"
        detail += f", {own.step_s:.2f} s each (median)" if own.step_s else ""
        detail += f"; {in_time(own.chosen_s)} up to step {own.chosen_step}, the chosen one" if own.chosen_step else ""
        found.append(Cost(in_time(own.train_s), "training", detail))
    if material.phases:
        peak = max(p.get("peak_memory_gib") or 0 for p in material.phases)
        total = in_time(math.fsum(p["seconds"] for p in material.phases))
        found.append(Cost(f"{peak:.1f} GiB", "memory at most", f"of the whole process; {total} from start to end"))
    return found


def cost_rows(arms: Sequence[Figures]) -> dict[str, list[CostCell]]:
    """Return the figures of several arms side by side, row by row; rows that no arm can tell are left out."""
    rows = {
        "trained parameters": _row(arms, lambda f: f.trained, lambda n: in_count(round(n)), _ratio),
        "file": _row(arms, lambda f: f.file_bytes, in_bytes, lambda f: f.file),
        "training, class pictures included": _row(arms, lambda f: f.total_s, in_time, _parts),
        "up to the chosen step, class pictures included": _row(
            arms,
            lambda f: f.chosen_s + f.class_s if f.chosen_step else None,
            in_time,
            lambda f: f"step {f.chosen_step}",
        ),
        "one step": _row(arms, lambda f: f.step_s, lambda s: f"{s:.2f} s", lambda f: f"median of {f.steps:,}"),
        "memory at most": _row(arms, lambda f: f.train_memory_gib, lambda g: f"{g:.1f} GiB", lambda f: ""),
    }
    return {name: cells for name, cells in rows.items() if any(cell.share for cell in cells)}


def in_one_line(own: Figures) -> str:
    """Return training time, parameters and file size as a sentence, as far as the run's folder can tell."""
    parts = [f"{in_time(own.train_s)} of training"] if own.train_s else []
    if own.trained and own.times_fewer:
        fewer = f", {own.times_fewer:,.0f} times fewer than the base has" if own.times_fewer >= LEAST_RATIO else ""
        parts.append(f"{own.trained:,} trained parameters{fewer}")
    if own.file_bytes:
        parts.append(f"a file of {in_bytes(own.file_bytes)}")
    return f"It took {'; '.join(parts)}." if parts else ""


def cheapest(arms: Sequence[Figures]) -> str:
    """Return which arm takes least room and least time, where one stands clearly below the others; else nothing."""
    sentences = (
        _least(arms, "The smallest file is that of", lambda f: f.file_bytes, in_bytes, ""),
        _least(arms, "The shortest training is that of", lambda f: f.total_s, in_time, ", class pictures included"),
    )
    return " ".join(filter(None, sentences))


def _least(
    arms: Sequence[Figures],
    says: str,
    value: Callable[[Figures], float | None],
    text: Callable[[float], str],
    note: str,
) -> str:
    known = sorted(((v, f.arm) for f in arms if (v := value(f))), key=lambda pair: pair[0])
    if len(known) < len(arms) or known[1][0] < CLEARLY * known[0][0]:
        return ""
    others = ", ".join(f"{arm} {text(v)}" for v, arm in known[1:])
    return f"{says} {known[0][1]}: {text(known[0][0])}{note} ({others})."


def _row(
    arms: Sequence[Figures],
    value: Callable[[Figures], float | None],
    text: Callable[[float], str],
    detail: Callable[[Figures], str],
) -> list[CostCell]:
    most = max((value(f) or 0.0 for f in arms), default=0.0) or 1.0
    return [
        CostCell(f.arm, text(v), detail(f), round(100 * v / most, 2))
        if (v := value(f))
        else CostCell(f.arm, "–", "", 0.0)
        for f in arms
    ]


def _ratio(own: Figures) -> str:
    if own.times_fewer is None:
        return ""
    return f"{own.times_fewer:,.0f}× fewer than the base" if own.times_fewer >= LEAST_RATIO else "the whole model"


def _parts(own: Figures) -> str:
    return f"{in_time(own.train_s)} + {in_time(own.class_s)} for class pictures" if own.class_s else ""


def _figures(trained: Trained, class_s: float) -> Figures:
    adapter, chosen = (trained.provenance.get(name) or {} for name in ("adapter", "chosen"))
    times = [s["seconds"] for s in trained.steps if s.get("seconds")]
    peaks = [p.get("peak_memory_gib") or 0.0 for p in trained.phases if p["name"] == "train"]
    return Figures(
        arm=trained.arm,
        trained=adapter.get("trainable_parameters"),
        base=adapter.get("base_parameters"),
        file=trained.file,
        file_bytes=float(adapter["file_bytes"]) if "file_bytes" in adapter else None,
        steps=len(trained.steps),
        step_s=statistics.median(times) if times else None,
        train_s=_seconds(trained, "train"),
        class_s=class_s,
        chosen_step=chosen["step"] if chosen.get("choose", "last") != "last" else 0,
        chosen_s=chosen.get("seconds", 0.0),
        train_memory_gib=max(peaks, default=0.0),
    )


def _class_set(trained: Trained) -> frozenset[str]:
    return frozenset(row["sha256"] for row in trained.class_pictures)


def _seconds(trained: Trained, phase: str) -> float:
    return math.fsum(p["seconds"] for p in trained.phases if p["name"] == phase)


def phases(material: Trained) -> list[Phase]:
    """Return the run's phases in the order of their first start, repeated ones added up."""
    order = list(dict.fromkeys(p["name"] for p in material.phases))
    seconds = {name: math.fsum(p["seconds"] for p in material.phases if p["name"] == name) for name in order}
    memory = {name: max(p.get("peak_memory_gib") or 0 for p in material.phases if p["name"] == name) for name in order}
    longest = max(seconds.values(), default=1) or 1
    return [
        Phase(name, s, in_time(s), 100 * s / longest, f"{memory[name]:.2f} GiB" if memory[name] else "")
        for name, s in seconds.items()
    ]
