"""The nine questions on which methods are chosen, each answered with what was measured; what was not is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from limner.metrics.inference import Inference, Ratio, read_inference
from limner.metrics.ladder import Ladder
from limner.metrics.scores import Interval, MetricScore, Scores
from limner.metrics.study import Study, StudyMetric
from limner.report.costs import CLEARLY, LEAST_RATIO, Figures
from limner.report.material import Trained
from limner.report.numbers import in_bytes, in_count, in_time, number, with_ends
from limner.report.tables import FINDINGS

GIGABYTE = 1e9


@dataclass(frozen=True)
class AxisCell:
    """What one arm measured."""

    figure: str
    detail: str = ""
    finding: str = ""
    """A score's finding against the base; "best" of a cost that is clearly the lowest."""
    badge: str = ""


@dataclass(frozen=True)
class Measure:
    """One measured quantity of an axis, a cell for each arm; without cells it was not measured, and `why` says why."""

    title: str
    link: str
    """Where on the page the figures behind it are."""
    cells: Mapping[str, AxisCell]
    why: str = ""


@dataclass(frozen=True)
class Axis:
    """One of the nine questions."""

    name: str
    asks: str
    measures: tuple[Measure, ...]


Kinds = tuple[tuple[str, str], ...]
SCORED: dict[str, tuple[str, Kinds]] = {
    "compatibility": ("What does it forget, and does the class stay itself?", (
        ("class_kept", "the class turning into the subject"), ("class_drift", "class pictures moved by"),
        ("other_drift", "everything else moved by"))),
    "personalisation": ("Is it this subject?", (
        ("subject_fidelity", "likeness"), ("masked_fidelity", "likeness inside the masks"),
        ("identification", "taken for it, not for another"))),
    "complex tasks": ("Does it do what a prompt asks?", (
        ("prompt_following", "following prompts with the subject"),
        ("other_prompts_followed", "following prompts without it"))),
    "image quality": ("Are the pictures good, varied and new?", (
        ("preference", "preference"), ("aesthetic", "aesthetic"),
        ("class_kd", "distance of class pictures from the base's"),
        ("diversity", "variety"), ("copies", "nearer to a training picture than the base comes"))),
}  # fmt: skip
"""The axes that are answered by scores: what each asks, and which metrics with their names in the table."""


def axes(
    scores: Scores | Study, arms: Sequence[Figures], ladders: Mapping[str, Ladder],
    measured: Mapping[str, Inference], *, study: bool = False,
) -> list[Axis]:  # fmt: skip
    """Return the nine axes with every arm's figures: costs of training and drawing, scores, strengths."""
    own, there = {one.arm: one for one in arms}, "#cost" if study else "#speed"
    table = {name: Axis(name, asks, _scored(scores, kinds, study=study)) for name, (asks, kinds) in SCORED.items()}
    for name, asks, measures in (
        ("efficiency", "What must the machine have?", (
            _cost("memory while training, at most", own, lambda f: f.train_memory_gib or None,
                  lambda v: f"{v:.1f} GiB"),
            _cost("trained parameters", own, lambda f: f.trained, lambda v: in_count(round(v)), _fewer),
            _drawn(scores.design.arms, measured, there))),
        ("training time", "How long does it take?", (
            _cost("training, class pictures included", own, lambda f: f.total_s or None, in_time),
            _cost("one step", own, lambda f: f.step_s, lambda v: f"{v:.2f} s"))),
        ("resources", "What does each subject leave on the disk?", (
            _cost("what is kept", own, lambda f: f.file_bytes, in_bytes, lambda f: f.file),
            _cost("subjects in a gigabyte", own, lambda f: f.file_bytes and GIGABYTE / f.file_bytes,
                  lambda v: f"{v:,.0f}" if v >= 1 else f"{v:.2f}", most=True))),
        ("power", "How far does it get, and what does a picture draw?", (
            _way(scores), _energy(scores.design.arms, measured, there))),
        ("customisation", "Can it be turned up and down?", (_slider(scores.design.arms, ladders),)),
    ):  # fmt: skip
        table[name] = Axis(name, asks, measures)
    order = ("efficiency", "training time", "resources", "compatibility", "personalisation", "complex tasks", "power",
             "customisation", "image quality")  # fmt: skip
    return [table[name] for name in order]


def measured_of(trained: Sequence[Trained]) -> dict[str, Inference]:
    """Return what was measured about drawing with each arm's run, where it was."""
    found = ((one.arm, read_inference(one.run.inference)) for one in trained)
    return {arm: inference for arm, inference in found if inference}


def _scored(scores: Scores | Study, kinds: Kinds, *, study: bool) -> tuple[Measure, ...]:
    found = [(title, kind, scores.find(kind)) for kind, title in kinds]
    taken = [_measure(title, metric, scores.design.arms[0], study=study) for title, _, metric in found if metric]
    absent = {kind: why for key, why in reversed(scores.skipped.items()) if (kind := key.partition(".")[0])}
    missing = [Measure(title, "", {}, absent[kind]) for title, kind, metric in found if not metric and kind in absent]
    return (*taken, *missing)


def _measure(title: str, metric: MetricScore | StudyMetric, base: str, *, study: bool) -> Measure:
    cells: dict[str, AxisCell] = {}
    for arm, one in metric.arms.items():
        if arm == base:
            cells[arm] = AxisCell("–" if metric.relative_to_base else number(one.score.mean))
            continue
        difference = metric.difference(arm, base)
        tested = difference.finding != "not tested"
        cells[arm] = AxisCell(
            number(one.score.mean), with_ends(difference.score, sign=True) if tested else _range(one.score),
            difference.finding if tested else "", FINDINGS[difference.finding] if tested else "",
        )  # fmt: skip
    return Measure(title, "#findings" if study else f"#values-{metric.key}", cells)


def _range(score: Interval) -> str:
    return "" if score.low is None or score.high is None else f"[{number(score.low)}, {number(score.high)}]"


def _cost(
    title: str,
    arms: Mapping[str, Figures],
    value: Callable[[Figures], float | None],
    text: Callable[[float], str],
    detail: Callable[[Figures], str] = lambda f: "",
    *,
    most: bool = False,
) -> Measure:
    """Return a cost, the arm that is clearly the best marked: times and memory are measured once."""
    known = {arm: float(v) for arm, f in arms.items() if (v := value(f))}
    ordered = sorted(known, key=lambda arm: -known[arm] if most else known[arm])
    clearly = len(ordered) == len(arms) > 1 and _ratio(known[ordered[0]], known[ordered[1]]) >= CLEARLY
    cells = {arm: AxisCell(text(v), detail(arms[arm])) for arm, v in known.items()}
    if clearly:
        best = ordered[0]
        cells[best] = replace(cells[best], finding="better", badge="most" if most else "least")
    return Measure(title, "#cost", cells, "" if cells else "the runs' logs do not tell")


def _drawn(arms: Sequence[str], measured: Mapping[str, Inference], link: str) -> Measure:
    """Return the seconds of one picture, and how many times the base's each arm takes, merged where it can be."""
    title, cells = "drawing one picture", dict[str, AxisCell]()
    for arm, one in measured.items():
        base, ways = one.usual("base"), [(w, m) for w in ("whole", "unmerged", "merged") if (m := one.usual(w))]
        if base and ways:
            cells.setdefault(arms[0], AxisCell(in_time(base.median_s), f"{base.steps} steps"))
            told = ", ".join(f"{w} {_times(m.to_base)}" for w, m in ways)
            cells[arm] = AxisCell(in_time(ways[0][1].median_s), f"{told} the base's")
    return Measure(title, link, cells, "" if cells else "limner measure RUN measures it")


def _times(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    ends = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.ratio:.2f}×{ends}"


def _energy(arms: Sequence[str], measured: Mapping[str, Inference], link: str) -> Measure:
    """Return the energy of one picture, where the hardware tells it."""
    title, cells, why = "energy of one picture", dict[str, AxisCell](), "limner measure RUN measures it"
    for arm, one in measured.items():
        why = one.design.energy
        for name, way in ((arms[0], one.usual("base")), (arm, one.usual("unmerged") or one.usual("whole"))):
            if way and way.joules is not None:
                cells.setdefault(name, AxisCell(f"{way.joules:.3g} J"))
    return Measure(title, link, cells, "" if cells else why.rstrip("."))


def _ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def _fewer(own: Figures) -> str:
    if own.times_fewer is None or own.times_fewer < LEAST_RATIO:
        return ""
    return f"{own.times_fewer:,.0f}× fewer than the base has"


def _way(scores: Scores | Study) -> Measure:
    """Return how much of the way from the base to the real pictures each arm goes in likeness."""
    title, metric = "of the way from the base to the real pictures", scores.find("subject_fidelity")
    within = next((v.value for v in metric.levels if v.name == "within"), None) if metric else None
    if metric is None or within is None:
        return Measure(title, "", {}, "too few real pictures to say how like one another they are")
    base = scores.design.arms[0]
    start = metric.arms[base].score.mean
    if within <= start:
        return Measure(title, "", {}, "the base's pictures are as like the subject as real ones are to one another")
    cells = {base: AxisCell("0 %")}
    for arm in scores.design.arms[1:]:
        gain = metric.difference(arm, base).score
        ends = [] if gain.low is None or gain.high is None else [gain.low, gain.high]
        low_high = ", ".join(f"{end / (within - start):.0%}".replace("%", " %") for end in ends)
        cells[arm] = AxisCell(f"{gain.mean / (within - start):.0%}".replace("%", " %"), f"[{low_high}]" if ends else "")
    return Measure(title, "#near", cells)


def _slider(arms: Sequence[str], ladders: Mapping[str, Ladder]) -> Measure:
    """Return each arm's likeness over its strengths, where they were drawn."""
    title, cells = "likeness over its strengths", dict[str, AxisCell]()
    for arm in arms:
        ladder = ladders.get(arm)
        if ladder is None or not ladder.metrics:
            continue
        key, steps = ladder.metrics[0].key, ladder.steps[-1]
        rungs = [(s, rung) for s in ladder.strengths if (rung := ladder.at(s, steps))]
        if not ladder.has_strength:
            cells[arm] = AxisCell("on or off")
        elif len(rungs) > 1:
            first, last = (rung.scores[key].score.mean for _, rung in (rungs[0], rungs[-1]))
            cells[arm] = AxisCell(f"{number(first)} → {number(last)}",
                                  f"strength {', '.join(f'{s:g}' for s, _ in rungs)}")  # fmt: skip
    return Measure(title, "#strength", cells, "" if cells else "set evaluation.strengths, such as [0.25, 0.5, 1, 1.5]")
