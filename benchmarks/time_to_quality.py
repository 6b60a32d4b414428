"""How little training is enough: `python -m benchmarks.time_to_quality RUN [--steps 200] [--results FILE]`.

The demo's recipe, LoRA with class pictures on the embedded base, and variants that change one thing each (learning
rate, rank, timestep weighting, min-SNR, class pictures) learn two subjects, as slots of one batch where they minimise
the same. All are judged every 25 steps on prompts that no comparison uses. Told is after how many image-steps (rows
that are learned from) a variant has 95 % of the best likeness that it reaches, counted from the base's own likeness,
how far others of the class have moved by then, and when it is as good as the recipe as shipped is at its own 95 %.
Slots of a batch have no time of their own: image-steps are what is compared.

Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import limner
from benchmarks.about import about
from limner.families.source import ASSETS
from limner.many import is_many, resume_many
from limner.metrics.course import Course
from limner.metrics.scores import read_written
from limner.recipe import load_recipe
from limner.rundir import RunDir
from limner.terminal import watch_for

SUBJECTS = {"critter": "critter", "robot": "robot"}
"""Folders of the demo's pictures, and their class nouns."""
VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "learning rate 3e-4": {"learning_rate": 3e-4},
    "learning rate 2e-3": {"learning_rate": 2e-3},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "rank 2": {"adapter.rank": 2},
    "rank 32": {"adapter.rank": 32},
    "min-SNR off": {"objective.snr_gamma": 0.0},
    "middle timesteps": {"objective.timesteps": "logit_normal"},
    "noisy timesteps": {"objective.timesteps": "high_noise"},
    "no class pictures": {"prior.enabled": False},
    "class pictures at full weight": {"prior.weight": 1.0},
}
"""One change each over the demo's recipe."""
ENOUGH = 0.95
EVERY = 25


def main() -> None:
    """Parse the command line, train what is not trained, tell what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    for folder, noun in SUBJECTS.items():
        train(given.run / folder, ASSETS / "demo" / folder, noun, given.steps)
    runs = {name: [run_of(given.run / subject, name) for subject in SUBJECTS] for name in VARIANTS}
    found = {**about(), "steps": given.steps, "subjects": list(SUBJECTS), "enough": ENOUGH,
             "variants": {name: told(own, runs["as shipped"]) for name, own in runs.items()}}  # fmt: skip
    print(json.dumps(found, indent=1))
    if given.results:
        given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run_of(subject: Path, name: str) -> Path:
    """Return the folder of a variant's run."""
    return next(subject.glob(f"*/{slug(name)}"))


def slug(name: str) -> str:
    """Return a variant's name as that of its run's folder."""
    return name.replace(" ", "-")


def train(run: Path, pictures: Path, noun: str, steps: int) -> None:
    """Train all variants on one subject, or go on with them: a batch for each thing that is minimised."""
    batches: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in VARIANTS.items():
        shared = {key: value for key, value in own.items() if key.startswith("objective.")}
        batches.setdefault(json.dumps(shared), {})[name] = {k: v for k, v in own.items() if k not in shared}
    for shared, variants in batches.items():
        place = run / slug(next(iter(variants)))
        with watch_for(silent=False) as watch:
            if is_many(place):
                resume_many(place, watch=watch).require_all()
                continue
            settings = {
                "pictures.class_noun": noun, "steps": steps, "validation.every_steps": EVERY,
                "validation.images_per_prompt": 1, "slots": len(variants), **json.loads(shared),
            }  # fmt: skip
            limner.train_many(variants=[{"name": slug(name), **own} for name, own in variants.items()],
                              pictures=pictures, recipe="demo", settings=settings, run=place,
                              watch=watch).require_all()  # fmt: skip


def told(runs: list[Path], shipped: list[Path]) -> dict[str, Any]:
    """Return the mean over subjects of what `reached` tells, and each subject's own; None where one has none."""
    each = []
    for run, other in zip(runs, shipped, strict=True):
        level = wanted(likeness_of(read_course(other)))
        each.append(reached(read_course(run), rows(run), level))
    columns = {name: [one[name] for one in each] for name in each[0]}
    means = {name: None if None in column else round(float(np.mean(column)), 4) for name, column in columns.items()}
    return {**means, "each": each}


def read_course(run: Path) -> Course:
    """Return what a run's validations found."""
    return read_written(Course, RunDir(run).course, "Train again.")


def rows(run: Path) -> int:
    """Return how many images a step learns from: the batch, and as many class pictures where they weigh something."""
    recipe = load_recipe(RunDir(run).recipe)
    return recipe.batch * recipe.accumulate * (2 if recipe.prior.active else 1)


def likeness_of(course: Course) -> dict[int, float]:
    """Return the mean likeness by step."""
    return next({step: score.mean for step, score in curve.scores.items()}
                for curve in course.curves if curve.kind == "subject_fidelity")  # fmt: skip


def wanted(likeness: dict[int, float]) -> float:
    """Return the likeness at which 95 % of the most that is gained over the base is there."""
    return likeness[0] + ENOUGH * (max(likeness.values()) - likeness[0])


def reached(course: Course, rows_per_step: int, level: float) -> dict[str, float | None]:
    """Return the best likeness, when 95 % of its gain is there, what it costs the class, and when `level` is there."""
    likeness = likeness_of(course)
    drift = next(curve.scores for curve in course.curves if curve.kind == "class_drift")
    best_at = max(likeness, key=lambda step: likeness[step])
    first = min(step for step in likeness if likeness[step] >= wanted(likeness))
    as_good = next((step for step in sorted(likeness) if likeness[step] >= level), None)
    return {
        "base_likeness": round(likeness[0], 4), "best_likeness": round(likeness[best_at], 4), "best_at_step": best_at,
        "enough_at_image_steps": first * rows_per_step, "class_drift_then": round(drift[first].mean, 4),
        "as_good_as_shipped_at_image_steps": None if as_good is None else as_good * rows_per_step,
        "class_drift_as_good": None if as_good is None else round(drift[as_good].mean, 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()
