"""The evaluate stage over subjects and training seeds: the scores of each in, study.json and study.csv out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limner.errors import UserError
from limner.evaluate.claims import CLAIMS, corrected, pairs
from limner.evaluate.hierarchy import LEAST_SUBJECTS, Cube, flipped_p, pooled, power, unit_of, units_needed
from limner.evaluate.statistics import DRAWS, LEAST_UNITS, finding, interval_p
from limner.evaluate.study_words import design_in_words, finding_in_words, limits_in_words, needed_in_words
from limner.evaluate.table import COLUMNS, as_csv, place_of, value_rows
from limner.metrics.scores import Interval, Level, MetricScore, Scores, read_written
from limner.metrics.study import Budget, Study, StudyArm, StudyDesign, StudyDifference, StudyMetric, SubjectInfo
from limner.rundir import write_atomically, write_json


@dataclass(frozen=True)
class Cell:
    """One subject with one training seed."""

    subject: str
    seed: int
    path: Path
    """Its comparison.json."""
    scores: Scores

    def metric(self, key: str) -> MetricScore:
        """Return the score of a metric."""
        return next(m for m in self.scores.metrics if m.key == key)


def evaluate_study(
    comparisons: Mapping[tuple[str, int], Path], out: Path, *, budget: Budget | None = None, seed: int = 0
) -> Study:
    """Put the scores of every (subject, training seed) together; write `out` and a .csv beside it, return the study.

    Raises:
        UserError: the scores are not of the same arms, prompts and images, or not of every seed of every subject.
    """
    cells = [Cell(subject, number, path, read_written(Scores, path, "Delete it, and compare again."))
             for (subject, number), path in comparisons.items()]  # fmt: skip
    _check(cells)
    first = cells[0].scores
    keys = [m.key for m in first.metrics if all(m.key in {o.key for o in c.scores.metrics} for c in cells)]
    taken = [_metric(cells, key, seed) for key in keys]
    metrics = _with_needs(corrected([metric for metric, _ in taken]), [values for _, values in taken])
    shape = next(iter(taken[0][1].values())).shape if taken else (1, 1, 1, 1)
    design = StudyDesign(
        arms=first.design.arms,
        subjects=tuple(_subject(cells, name, out.parent) for name in dict.fromkeys(c.subject for c in cells)),
        seeds=tuple(dict.fromkeys(c.seed for c in cells)), prompts=first.design.prompts, images=first.design.images,
        unit=unit_of(shape), budget=budget or Budget(), settings=first.design.settings, seed=seed, draws=DRAWS,
    )  # fmt: skip
    study = Study(design=design, encoders=first.encoders, metrics=metrics, limits=tuple(limits_in_words(design)),
                  skipped=_skipped(cells, keys))  # fmt: skip
    write_atomically(out.with_suffix(".csv"), _table(cells, keys, out.parent).encode())
    write_json(out, study.model_dump(mode="json"))
    return study


def _check(cells: Sequence[Cell]) -> None:
    """Refuse scores that cannot be put together value by value."""
    first, subjects, seeds = cells[0], {c.subject for c in cells}, {c.seed for c in cells}
    if len(cells) != len(subjects) * len(seeds):
        raise UserError(f"{len(cells)} comparisons are not {len(seeds)} seeds of {len(subjects)} subjects.",
                        "Compare again, with the same command.")  # fmt: skip
    for cell in cells[1:]:
        for name in ("arms", "prompts", "images", "settings"):
            here, there = getattr(first.scores.design, name), getattr(cell.scores.design, name)
            if here != there:
                raise UserError(f"{cell.path}: has other {name} ({there}) than {first.path} ({here}).",
                                "Delete it, and compare again.")  # fmt: skip


def _metric(cells: Sequence[Cell], key: str, seed: int) -> tuple[StudyMetric, dict[tuple[str, str], Cube]]:
    """Return one metric over all cells, and the values of each of its differences."""
    about, names = cells[0].metric(key), list(dict.fromkeys(c.subject for c in cells))
    cubes = {arm: _cube(cells, key, arm) for arm in about.arms}
    base, *tuned = cubes
    values = {(arm, to): cubes[arm] - cubes[to] for to, arm in pairs(base, tuned)}
    metric = StudyMetric(
        key=key, kind=about.kind, encoder=about.encoder, title=about.title, says=about.says, better=about.better,
        relative_to_base=about.relative_to_base, is_claimed=about.is_claimed,
        levels=tuple(_levels(cells, key)),
        arms={arm: StudyArm(score=pooled(cube, seed=seed), subjects=_by_subject(cube, names))
              for arm, cube in cubes.items()},
        differences=tuple(
            _difference(about, arm, to, cube, names, seed, is_tested=not (to == base and about.relative_to_base))
            for (arm, to), cube in values.items()
        ),
    )  # fmt: skip
    return metric, values


def _difference(
    about: MetricScore, arm: str, to: str, values: Cube, names: Sequence[str], seed: int, *, is_tested: bool
) -> StudyDifference:
    score = pooled(values, seed=seed)
    least = _least(score)
    found = finding(score, better=about.better, least_units=least)
    if not is_tested and values.any():
        found = "not tested"
    seen = power(values) if is_tested else None
    design = design_in_words(values.shape[0], values.shape[1])
    words = finding_in_words(score, found, design=design, least=least, detectable=seen.detectable if seen else None)
    return StudyDifference(
        arm=arm, to=to, score=score, p=interval_p(score) if is_tested else None, p_holm=None,
        sign_flip_p=flipped_p(values, seed=seed) if is_tested else None,
        conclusive=found in CLAIMS, finding=found, words=words,
        subjects=_by_subject(values, names), needed="", power=seen,
    )  # fmt: skip


def _with_needs(
    metrics: Sequence[StudyMetric], values: Sequence[Mapping[tuple[str, str], np.ndarray]]
) -> tuple[StudyMetric, ...]:
    """Return the metrics, each open difference with what it would take to tell it among everything that is claimed."""
    families = Counter(_is_to_base(m, d) for m in metrics for d in m.differences if d.p_holm is not None)
    told = []
    for metric, cubes in zip(metrics, values, strict=True):
        differences: list[StudyDifference] = []
        for one in metric.differences:
            claims = families[_is_to_base(metric, one)] if one.p_holm is not None else 1
            units = units_needed(cubes[one.arm, one.to], one.score.mean, claims=claims)
            needed = needed_in_words(one, units, least=_least(one.score), claims=claims)
            differences.append(one.model_copy(update={"needed": needed}))
        told.append(metric.model_copy(update={"differences": tuple(differences)}))
    return tuple(told)


def _is_to_base(metric: StudyMetric, difference: StudyDifference) -> bool:
    return difference.to == next(iter(metric.arms))


def _least(score: Interval) -> int:
    """Return how many independent draws a claim takes."""
    return LEAST_SUBJECTS if score.unit == "subject" else LEAST_UNITS


def _cube(cells: Sequence[Cell], key: str, arm: str) -> Cube:
    """Return an arm's values as subjects x trainings x prompts x images.

    Where prompts have unequal numbers of images their means are taken, and where values belong to no image the one
    value of each training.
    """
    subjects, seeds = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("subject", "seed"))
    at = {(c.subject, c.seed): c for c in cells}
    grids = [[_grid(at[subject, number], key, arm) for number in seeds] for subject in subjects]
    if len({len(prompt) for prompt in grids[0][0]}) > 1:
        grids = [[[[float(np.mean(one))] for one in grid] for grid in row] for row in grids]
    return np.array(grids, dtype=np.float64)


def _grid(cell: Cell, key: str, arm: str) -> list[list[float]]:
    """Return one training's values, prompt by prompt."""
    score = cell.metric(key).arms[arm]
    if not score.images:
        return [[score.score.mean]]
    by_prompt: dict[str, list[float]] = {}
    for image in sorted(score.images, key=lambda image: image.file):
        by_prompt.setdefault(image.prompt, []).append(image.value)
    return [by_prompt[prompt] for prompt in sorted(by_prompt, key=place_of)]


def _by_subject(values: Cube, names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, values.mean((1, 2, 3)).tolist(), strict=True))


def _levels(cells: Sequence[Cell], key: str) -> Iterator[Level]:
    """Yield each level as its mean over the cells, where all have it."""
    for level in cells[0].metric(key).levels:
        same = [other for cell in cells for other in cell.metric(key).levels if other.name == level.name]
        if len(same) == len(cells):
            mean = float(np.mean([other.value for other in same]))
            yield level.model_copy(update={"value": mean, "pairs": sum(other.pairs for other in same)})


def _subject(cells: Sequence[Cell], name: str, folder: Path) -> SubjectInfo:
    own = [cell for cell in cells if cell.subject == name]
    design = own[0].scores.design
    return SubjectInfo(
        name=name, comparisons={str(cell.seed): os.path.relpath(cell.path, folder) for cell in own},
        training_pictures=design.training_pictures, held_out_pictures=design.held_out_pictures,
    )  # fmt: skip


def _skipped(cells: Sequence[Cell], keys: Sequence[str]) -> dict[str, str]:
    """Return the metrics that are not in every cell, each with the first reason that was given."""
    found: dict[str, str] = {}
    for cell in cells:
        reasons = {m.key: "not taken for every subject and seed" for m in cell.scores.metrics} | cell.scores.skipped
        found |= {key: why for key, why in reasons.items() if key not in keys and found.get(key, why) == why}
    return found


def _table(cells: Sequence[Cell], keys: Sequence[str], folder: Path) -> str:
    """Return every value as a line of CSV; `file` is a path from the folder of the table."""
    rows = ([cell.subject, cell.seed, *row] for cell in cells
            for row in value_rows(cell.scores, cell.path.parent, folder, keys))  # fmt: skip
    return as_csv(("subject", "seed", *COLUMNS), rows)
