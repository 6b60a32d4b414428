"""Does prior preservation keep the class what it was?

`python -m benchmarks.prior_preservation SUBJECTS [--seeds N] [--work DIR] [key=value ...]`

Every subject (a folder of folders named "TOKEN CLASS") is trained by DreamBooth with class pictures and without them,
from the same training seed; then both draw the class prompts of the comparison from the same noise as the base. How far
the class has moved is measured picture by picture (`class_drift`: (1 - cosine) / 2 to the base's picture of the same
noise) and over all pictures (`class_kd`, `class_mmd`: distances between what is drawn of the class and what the base
draws of it). Told is the ratio of the means with and without class pictures, with a 95 % interval from resampling
trainings and, within each, prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import limner
from limner import machine
from limner.metrics.scores import Scores
from limner.prepare.subjects import spec_of, subject_folders
from limner.recipe import load_recipe, parse_settings
from limner.rundir import write_json

ARMS = {"with": True, "without": False}
KINDS = ("class_drift", "class_kd", "class_mmd")
DRAWS = 4000
Values = dict[str, list[float]]
"""Drifts of one training's class images, by prompt."""


def main() -> None:
    """Parse the command line, train, draw, score; print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prior_preservation", description=__doc__)
    parser.add_argument("subjects", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value over the recipe of all trainings")
    parser.add_argument("--recipe", default="dreambooth")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds for each subject")
    parser.add_argument("--work", type=Path, required=True, help="keep runs here; none is repeated")
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_intermixed_args()
    settings = parse_settings(given.settings)
    drifts: dict[str, dict[str, list[Values]]] = defaultdict(lambda: defaultdict(list))
    for folder in subject_folders(given.subjects):
        for seed in range(given.seeds):
            for arm, prior in ARMS.items():
                run = given.work / f"{folder.name} {seed} {arm}"
                for key, values in trained(folder, given.recipe, {**settings, "seed": seed}, run, prior=prior).items():
                    drifts[key][arm].append(values)
    found = {key: told(arms["with"], arms["without"]) for key, arms in drifts.items()}
    for key, row in found.items():
        print(f"{key:<24}{json.dumps(row)}")
    if given.out:
        command = " ".join(["python -m benchmarks.prior_preservation", *sys.argv[1:]])
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command,
                 "machine": machine.hardware(), "versions": machine.versions()}  # fmt: skip
        write_json(given.out, {**about, "class_moved": found})


def trained(folder: Path, recipe: str, settings: Mapping[str, Any], run: Path, *, prior: bool) -> dict[str, Values]:
    """Return the drifts of a run's class images by encoder and prompt; it is trained now unless it is there."""
    named = spec_of(folder.name, load_recipe(recipe, settings).pictures)
    heeded = {key: value for key, value in settings.items() if prior or not key.startswith("prior.")}
    own = {**heeded, "prior.enabled": prior, "pictures.token": named.token, "pictures.class_noun": named.class_noun}
    scores = run / "scores.json"
    if not scores.exists():
        limner.train(folder, recipe=recipe, settings=own, run=run)
        limner.evaluate(run)
    drifts: dict[str, Values] = {}
    for metric in Scores.model_validate_json(scores.read_text(encoding="utf-8")).metrics:
        if metric.kind in KINDS:
            (tuned,) = (arm for name, arm in metric.arms.items() if name != "base")
            values = drifts.setdefault(metric.key, {})
            for image in tuned.images:
                values.setdefault(image.prompt, []).append(image.value)
    return drifts


def told(with_prior: list[Values], without: list[Values]) -> dict[str, Any]:
    """Return the mean drift of both arms and their ratio with its interval; trainings and prompts are paired."""
    # [arm, training, prompt]: the mean over a prompt's images
    means = np.array([[[np.mean(v) for v in one.values()] for one in arm] for arm in (with_prior, without)])
    _, trainings, prompts = means.shape
    random = np.random.default_rng(0)
    chosen = random.integers(0, trainings, (DRAWS, trainings, 1))
    within = random.integers(0, prompts, (DRAWS, trainings, prompts))
    drawn = means[:, chosen, within].mean((2, 3))
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    first, second = means.mean((1, 2))
    return {"with": round(first, 4), "without": round(second, 4), "ratio": round(first / second, 3),
            "low": round(low, 3), "high": round(high, 3), "trainings": trainings, "prompts": prompts}  # fmt: skip


if __name__ == "__main__":
    main()
