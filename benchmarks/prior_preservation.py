"""Does prior preservation keep the class what it was?

`python -m benchmarks.prior_preservation STUDY [--kept ARM] [--lost ARM] [--out FILE]`

STUDY is the folder of a `limner compare` with one arm that trained with class pictures and one without, such as
`benchmarks.method_study` makes. How far the class has moved is what the study measured: picture by picture
(`class_drift`: (1 - cosine) / 2 to the base's of the same noise) and over all pictures (`class_kd`, `class_mmd`:
distances between what is drawn of the class and what the base draws of it). Told is the ratio of both arms' means with
a 95 % interval over subjects.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.about import about
from limner.rundir import write_json

KINDS = ("class_drift", "class_kd", "class_mmd")


def main() -> None:
    """Parse the command line; print the ratios, and write them where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prior_preservation", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--kept", default="dreambooth", help="the arm with class pictures")
    parser.add_argument("--lost", default="dreambooth-no-prior", help="the arm without")
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_args()
    found = {metric: told(arms[given.kept], arms[given.lost]) for metric, arms in moved(given.study).items()}
    for metric, row in found.items():
        print(f"{metric:<24}{json.dumps(row)}")
    if given.out:
        write_json(given.out, {**about(), "class_moved": found})


def moved(study: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return how far the class has moved: by metric, arm and subject, the mean over trainings and pictures."""
    values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with (study / "study.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"].startswith(KINDS):
                values[row["metric"]][row["arm"]][row["subject"]].append(float(row["value"]))
    return {metric: {arm: {subject: float(np.mean(some)) for subject, some in subjects.items()}
                     for arm, subjects in arms.items()} for metric, arms in values.items()}  # fmt: skip


def told(kept: dict[str, float], lost: dict[str, float]) -> dict[str, Any]:
    """Return both means and their ratio, with its interval over subjects."""
    first, second = (np.array([arm[subject] for subject in sorted(kept)]) for arm in (kept, lost))
    low, high = ratio_interval(first, second)
    return {
        "with": round(first.mean(), 4),
        "without": round(second.mean(), 4),
        "ratio": round(first.mean() / second.mean(), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "subjects": {subject: [round(kept[subject], 4), round(lost[subject], 4)] for subject in sorted(kept)},
    }


def ratio_interval(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a ratio of paired means: every r for which mean(first - r second) may be 0.

    Fieller (1954): with t Student's quantile and s the variances of the means, the roots of
    (b^2 - t^2 s_bb) r^2 - 2 (ab - t^2 s_ab) r + (a^2 - t^2 s_aa) = 0. Without bounds where b itself may be 0.
    """
    t = stats.t.ppf((1 + level) / 2, len(first) - 1)
    (aa, ab), (_, bb) = np.cov(first, second) * t**2 / len(first)
    a, b = first.mean(), second.mean()
    square, middle, last = b**2 - bb, a * b - ab, a**2 - aa
    if square <= 0:
        return -np.inf, np.inf
    root = np.sqrt(middle**2 - square * last)
    return (middle - root) / square, (middle + root) / square


if __name__ == "__main__":
    main()
