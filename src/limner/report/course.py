"""The course of a training on the page: what was judged over the steps, the chosen step, and the pictures behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.metrics.course import Course, Curve
from limner.report.charts import Line, Tick, nice_ticks
from limner.report.material import Trained
from limner.rundir import read_json

FILMED = (("subject", 2), ("class", 1))
"""How many prompts of each kind are shown over the steps: always the first, so that none is picked."""
FRAMES = 9
"""At most so many steps are shown of a prompt."""
FEW_STEPS = (
    "Step 0 is the base in many steps, and the others are drawn in few, as the adapter is: they are to come as near to "
    "it as they can."
)


@dataclass(frozen=True)
class CourseLine:
    """One arm's scores over the steps, as SVG points, with the band of their intervals."""

    arm: str
    points: str
    band: str
    """Empty where there are no intervals."""
    last: float
    knee: int | None
    """The step that the evidence speaks for; None where it is not conclusive."""
    knee_at: float
    """Its place in per cent of the width."""


@dataclass(frozen=True)
class CoursePlot:
    """One question over the steps; the SVG's own scale is 1000 x 400."""

    curve: Curve
    """The first arm's; its levels are all in the legend, and those that are near enough drawn as lines."""
    lines: tuple[CourseLine, ...]
    levels: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Frame:
    """What one step made of a prompt."""

    step: int
    file: Path
    is_knee: bool
    label: str


@dataclass(frozen=True)
class Film:
    """Prompts over the steps, and why which step was chosen."""

    arm: str
    words: str
    taken: str
    """Which step the result is of."""
    rows: tuple[tuple[str, tuple[Frame, ...]], ...]
    note: str
    """What its step 0 is, where that is not plain."""


def course_plots(trained: Sequence[Trained]) -> list[CoursePlot]:
    """Lay out each question over the steps, with a line for every arm that was judged during training."""
    courses = {one.arm: one.course for one in trained if one.course}
    kinds = dict.fromkeys(curve.kind for course in courses.values() for curve in course.curves)
    return [_plot(kind, courses) for kind in kinds]


def films(trained: Sequence[Trained]) -> list[Film]:
    """Return the pictures of the first prompts over the steps, for every arm that was judged during training."""
    return [_film(one, one.course) for one in trained if one.course and one.course.knee]


def _plot(kind: str, courses: Mapping[str, Course]) -> CoursePlot:
    curves = {arm: curve for arm, course in courses.items() for curve in course.curves if curve.kind == kind}
    first = next(iter(curves.values()))
    scores = [score for curve in curves.values() for score in curve.scores.values()]
    values = [end for score in scores for end in (score.mean, score.low, score.high) if end is not None]
    y_ticks = nice_ticks(min(values), max(values))
    last_step = max(max(max(curve.scores) for curve in curves.values()), 1)
    low, high = y_ticks[0], y_ticks[-1]

    def up(value: float) -> float:
        return 100 * (value - low) / (high - low)

    def place(step: int, value: float) -> str:
        return f"{1000 * step / last_step:.1f},{400 - 4 * up(value):.1f}"

    lines = []
    for arm, curve in curves.items():
        known = sorted(curve.scores.items())
        tops = [place(step, score.high) for step, score in known if score.high is not None]
        bottoms = [place(step, score.low) for step, score in known if score.low is not None]
        knee = courses[arm].knee
        step = knee.step if knee and knee.is_conclusive else None
        lines.append(
            CourseLine(
                arm=arm,
                points=" ".join(place(step, score.mean) for step, score in known),
                band=" ".join([*tops, *reversed(bottoms)]),
                last=known[-1][1].mean,
                knee=step,
                knee_at=round(100 * (step or 0) / last_step, 2),
            )
        )
    x_ticks = [tick for tick in nice_ticks(0.0, float(last_step)) if tick <= last_step]
    return CoursePlot(
        curve=first,
        lines=tuple(lines),
        levels=tuple(
            Line(one.title, one.name, one.value, round(up(one.value), 2))
            for one in first.levels
            if low <= one.value <= high
        ),
        x_ticks=tuple(Tick(f"{t:.10g}", round(100 * t / last_step, 2)) for t in x_ticks),
        y_ticks=tuple(Tick(f"{t:.10g}", round(up(t), 2)) for t in y_ticks),
    )


def _film(one: Trained, course: Course) -> Film:
    knee = course.knee
    assert knee is not None, "a film was asked for of a course without steps"
    folders = {step: f"step-{step:06d}" for step in shown_steps(course.steps, knee.step)}
    base = _drawn_in(one.run.validation / folders[0]) if course.of_few_steps else "base"
    labels = {0: base} | {step: f"step {step}" for step in folders if step}
    if course.of_few_steps and knee.is_conclusive:
        labels[knee.step] += ", the nearest"
    elif knee.is_conclusive:
        labels[knee.step] += ", the knee"
    shown = [(step, labels[step], first_images(one.run.validation / name)) for step, name in folders.items()]
    if course.of_few_steps:
        shown.insert(1, (0, _drawn_in(one.run.untaught), first_images(one.run.untaught)))
    rows = []
    for pair in ((kind, number) for kind, count in FILMED for number in range(count)):
        found = [(step, label, images[pair]) for step, label, images in shown if pair in images]
        frames = tuple(
            Frame(step, file, knee.is_conclusive and step == knee.step, label) for step, label, (_, file) in found
        )
        if frames:
            rows.append((found[-1][2][0], frames))
    chosen = one.provenance.get("chosen") or {}
    return Film(
        one.arm,
        knee.words,
        f"The result is of step {chosen['step']}." if "step" in chosen else "",
        tuple(rows),
        FEW_STEPS if course.of_few_steps else "",
    )


def _drawn_in(folder: Path) -> str:
    """Return what to call the base in the number of steps that a folder of it was drawn in."""
    manifest = folder / "manifest.json"
    return f"base, {read_json(manifest)['num_inference_steps']} steps" if manifest.is_file() else "base"


def shown_steps(steps: Sequence[int], knee: int) -> tuple[int, ...]:
    """Return at most so many steps as there is room for, evenly spread; the base, the knee and the last among them."""
    places = {round(i * (len(steps) - 1) / (FRAMES - 1)) for i in range(FRAMES)}
    even = {steps[place] for place in places}
    if knee in steps and knee not in even:
        inner = sorted(even - {steps[0], steps[-1]}, key=lambda step: abs(step - knee))
        even = (even - set(inner[:1])) | {knee}
    return tuple(sorted(even))


def first_images(folder: Path) -> dict[tuple[str, int], tuple[str, Path]]:
    """Return the first picture of each prompt, with the prompt; nothing where the folder is gone."""
    manifest = folder / "manifest.json"
    rows = read_json(manifest)["images"] if manifest.is_file() else []
    return {
        (row["set"], row["prompt_index"]): (row["prompt"], folder / row["file"])
        for row in rows
        if row["image_index"] == 0
    }
