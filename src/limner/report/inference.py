"""How fast and how large drawing is, from the runs' inference.json: seconds against steps, and the adapter's cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from limner.metrics.inference import Inference, InferenceArm, Measurement, Ratio, State, together
from limner.report.charts import Tick
from limner.report.material import BASE, Material
from limner.report.numbers import in_bytes, in_time, listed

IN_WORDS: dict[State, str] = {
    "base": "The base",
    "unmerged": "With the adapter beside its weights",
    "merged": "With the adapter merged into its weights",
    "whole": "Tuned as a whole",
}


@dataclass(frozen=True)
class Way:
    """One way of drawing, as the page shows it."""

    label: str
    arm: str
    """Whose colour it has."""
    told: InferenceArm
    rows: tuple[Measurement, ...]


@dataclass(frozen=True)
class Line:
    """Seconds per picture of one way of drawing, against the steps."""

    way: Way
    points: str
    """As SVG points on 1000 x 400."""
    dots: tuple[tuple[float, float], ...]
    """In per cent of width and height."""


@dataclass(frozen=True)
class Panel:
    """All ways of drawing at one batch, both axes logarithmic."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class SpeedRow:
    """One way of drawing in a row of the table."""

    way: Way
    seconds: str
    slow: str
    """The 95th percentile, or of few rounds the slowest."""
    per_s: str
    joules: str
    ratio: str
    bar: tuple[float, float, float] | None
    """The ratio and the ends of its interval in per cent of the bar, 1 in the middle."""
    parts: tuple[float, float, float]
    """Reading the prompts, denoising, decoding: shares in per cent."""


@dataclass(frozen=True)
class SpeedTable:
    """All ways of drawing at one number of steps and one batch."""

    title: str
    is_usual: bool
    """Whether the steps are those that come nearest to the recipe's."""
    rows: tuple[SpeedRow, ...]


@dataclass(frozen=True)
class SizeRow:
    """What one way of drawing needs."""

    way: Way
    disk: str
    weights: str
    working: tuple[str, ...]
    """By batch."""


@dataclass(frozen=True)
class Speed:
    """The section of the page."""

    sentences: tuple[str, ...]
    panels: tuple[Panel, ...]
    tables: tuple[SpeedTable, ...]
    batches: tuple[int, ...]
    sizes: tuple[SizeRow, ...]
    notes: tuple[str, ...]
    has_joules: bool


def speed(material: Material) -> Speed | None:
    """Return what the page says about drawing; None where the runs were not measured, or not in one session."""
    measured = [one.inference for one in material.trained if one.inference]
    if len(measured) < len(material.trained) or not together(measured) or not measured[0].measurements:
        return None
    ways = list(_ways(material))
    batches = sorted({row.batch for way in ways for row in way.rows})
    widest = max((abs(math.log(end)) for row in _rows(ways) for end in _ends(row.to_base)), default=0.0) or 1.0
    return Speed(
        sentences=tuple(_sentences(measured, ways)),
        panels=tuple(_panel(ways, batch) for batch in batches),
        tables=tuple(_tables(ways, measured[0].design.usual_steps, widest)),
        batches=tuple(batches),
        sizes=tuple(_size(way, batches) for way in ways),
        notes=tuple(_notes(measured, ways)),
        has_joules=any(row.joules is not None for row in _rows(ways)),
    )


def _ways(material: Material) -> Iterator[Way]:
    """Yield the base, and every state of every run."""
    several = len(material.trained) > 1
    for number, one in enumerate(material.trained):
        assert one.inference is not None, "speed asks for it"
        for told in one.inference.arms:
            is_base = told.state == "base"
            if number and is_base:  # the same draws as the first run's
                continue
            label = f"{one.arm}, {told.state}" if several and not is_base else told.state
            rows = tuple(row for row in one.inference.measurements if row.arm == told.name)
            yield Way(label, BASE if is_base else one.arm, told, rows)


def _rows(ways: Sequence[Way]) -> list[Measurement]:
    return [row for way in ways for row in way.rows]


def _ends(ratio: Ratio | None) -> list[float]:
    return [end for end in (ratio.ratio, ratio.low, ratio.high) if end is not None] if ratio else []


def _sentences(measured: Sequence[Inference], ways: Sequence[Way]) -> Iterator[str]:
    """Yield the findings at the recipe's own steps, or what comes nearest, one picture at a time."""
    base = measured[0].usual("base")
    if base is None:
        return
    at = f"{_steps(base.steps)}, {_pictures(base.batch)}"
    yield f"In {at}, the base takes {_seconds(base.median_s)} a picture on {_device(measured[0])}."
    for way in ways[1:]:
        row = next((r for r in way.rows if (r.steps, r.batch) == (base.steps, base.batch)), None)
        if row and row.to_base:
            who = f"{IN_WORDS[way.told.state]} it" if len(measured) == 1 else way.label
            yield f"{who} takes {_ratio(row.to_base)} times as long: {_finding(row.to_base)}."


def _finding(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.rounds} rounds are too few for an interval"
    if not ratio.conclusive:
        return f"no difference was found, and one of {_percent(max(ratio.high - 1, 1 - ratio.low))} could hide"
    return f"{_percent(abs(ratio.ratio - 1))} {'longer' if ratio.ratio > 1 else 'shorter'}"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f}\N{NO-BREAK SPACE}%"


def _notes(measured: Sequence[Inference], ways: Sequence[Way]) -> Iterator[str]:
    first = measured[0]
    design = first.design
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in design.sampling.items())
    rounds = sorted({len(row.seconds) for row in _rows(ways)})
    count = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
    yield (f"From prompts to pixels in memory, {design.precision} on {_device(first)}; {settings}. All drew in turn in "
           f"one process, {count} rounds, so that what disturbs the machine hits all alike. In "
           "brackets: the 95 % interval over the rounds. What a merged model takes on disk is counted in "
           f"{design.precision}.")  # fmt: skip
    for way in ways:
        merge = way.told.merge
        if merge and merge.agrees is not None:
            agrees = "agrees" if merge.agrees else "does not agree"
            apart = f"at most {merge.largest:.1g} apart, of values about 1"
            yield f"What {way.label} predicts {agrees} with unmerged: {apart}."
        elif merge and merge.share_of_effect is not None:
            yield (f"What {way.label} predicts differs from unmerged by {merge.share_of_effect:.1%} of what the "
                   f"adapter changes: merging rounds the weights to {design.precision}.")  # fmt: skip
    told = [memory for way in ways for memory in way.told.memory.values()]
    peaks = [(m.process_peak_bytes, m.process_anonymous_bytes) for m in told if m.process_peak_bytes]
    if peaks:
        peak, anonymous = max(peaks)
        yield (f"The whole process, with Python and all that was measured, held {in_bytes(float(peak))} at most, "
               f"{in_bytes(float(anonymous or peak))} of it no pages of files.")  # fmt: skip
    yield f"Energy: {design.energy}."
    if design.stopped:
        yield "It was stopped before its time."
    for batch, rows in groupby(sorted(first.left_out, key=lambda one: (one.batch, one.steps)), lambda one: one.batch):
        left = list(rows)
        yield f"Not measured, {_pictures(batch)}: {listed([str(one.steps) for one in left])} steps: {left[-1].why}."


def _panel(ways: Sequence[Way], batch: int) -> Panel:
    """Lay out one batch; steps double and seconds grow by equal factors at equal distances."""
    own = [(way, sorted((r for r in way.rows if r.batch == batch), key=lambda r: r.steps)) for way in ways]
    steps = sorted({row.steps for _, rows in own for row in rows})
    y_ticks = log_ticks([row.median_s for _, rows in own for row in rows])
    low, high = y_ticks[0], y_ticks[-1]

    def x(value: int) -> float:
        return 50.0 if len(steps) == 1 else 100 * math.log(value / steps[0]) / math.log(steps[-1] / steps[0])

    def y(value: float) -> float:
        return 100 * math.log(value / low) / math.log(high / low)

    lines: list[Line] = []
    for way, rows in own:
        dots = tuple((round(x(row.steps), 2), round(y(row.median_s), 2)) for row in rows)
        lines.append(Line(way, " ".join(f"{10 * a:.1f},{400 - 4 * b:.1f}" for a, b in dots), dots))
    return Panel(
        _pictures(batch),
        tuple(lines),
        tuple(Tick(str(value), x(value)) for value in steps),
        tuple(Tick(_seconds(value), y(value)) for value in y_ticks),
    )


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return 1, 2 or 5 times powers of ten that enclose positive values, at least two."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = [round(m * 10.0**power, 12) for power in range(first - 1, last + 2) for m in (1, 2, 5)]
    below = max(i for i, tick in enumerate(ticks) if tick <= min(values))
    above = next(i for i, tick in enumerate(ticks) if tick >= max(values) and i > below)
    return ticks[below : above + 1]


def _tables(ways: Sequence[Way], usual: int, widest: float) -> Iterator[SpeedTable]:
    pairs = sorted({(row.batch, row.steps) for row in _rows(ways)})
    for batch, steps in pairs:
        nearest = min((s for b, s in pairs if b == batch), key=lambda s: abs(s - usual))
        own = [(way, row) for way in ways for row in way.rows if (row.batch, row.steps) == (batch, steps)]
        rows = tuple(_speed_row(way, row, widest) for way, row in own)
        yield SpeedTable(f"{_steps(steps).capitalize()}, {_pictures(batch)}", steps == nearest, rows)


def _speed_row(way: Way, row: Measurement, widest: float) -> SpeedRow:
    def at(value: float) -> float:
        return round(50 + 50 * math.log(value) / widest, 2)

    ratio, parts = row.to_base, (row.text_s, row.denoise_s, row.decode_s)
    bar = (at(ratio.ratio), at(ratio.low), at(ratio.high)) if ratio and ratio.low and ratio.high else None
    text, denoise, decode = (round(100 * part / sum(parts), 1) for part in parts)
    return SpeedRow(
        way=way,
        seconds=_seconds(row.median_s),
        slow=_slow(row),
        per_s=f"{row.pictures_per_s:.3g}",
        joules="–" if row.joules is None else f"{row.joules:.3g} J",
        ratio=_ratio(ratio) if ratio else "",
        bar=bar,
        parts=(text, denoise, decode),
    )


def _slow(row: Measurement) -> str:
    if row.p95_s is not None:
        return f"{_seconds(row.p95_s)}, 95 of 100 below"
    return f"{_seconds(max(row.seconds) / row.batch)}, slowest of {len(row.seconds)}"


def _size(way: Way, batches: Sequence[int]) -> SizeRow:
    memory = way.told.memory
    working = [memory[batch].working_bytes if batch in memory else None for batch in batches]
    weights = next((in_bytes(float(one.weights_bytes)) for one in memory.values()), "–")
    return SizeRow(way, in_bytes(float(way.told.disk_bytes)), weights,
                   tuple("–" if value is None else in_bytes(float(value)) for value in working))  # fmt: skip


def _ratio(ratio: Ratio) -> str:
    """Return a ratio with its interval, with as many digits as tell it from 1."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.2f}"
    digits = 3 if ratio.high - ratio.low < 0.05 else 2
    mean, low, high = (f"{value:.{digits}f}" for value in (ratio.ratio, ratio.low, ratio.high))
    return f"{mean}\N{NO-BREAK SPACE}[{low}, {high}]"


def _seconds(value: float) -> str:
    if value < 0.9995:
        return f"{1000 * value:.3g}\N{NO-BREAK SPACE}ms"
    return f"{value:.3g}\N{NO-BREAK SPACE}s" if value < 60 else in_time(value)


def _device(found: Inference) -> str:
    return "the CPU" if found.design.device == "cpu" else found.design.device


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"


def _pictures(batch: int) -> str:
    return "one picture at a time" if batch == 1 else f"{batch} pictures at a time"
