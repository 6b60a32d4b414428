"""Every value behind the scores, a line of CSV each, for a spreadsheet or a program of one's own."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from limner.metrics.scores import Scores

COLUMNS = ("arm", "metric", "set", "prompt", "image", "value", "file")


def value_rows(scores: Scores, lie_in: Path, out: Path, keys: Sequence[str] | None = None) -> Iterator[list[object]]:
    """Yield every value of scores whose file lies in `lie_in`, the files as paths from the folder `out`.

    A metric whose values belong to no image has one row with its mean.
    """
    for metric in scores.metrics:
        for arm in scores.design.arms if keys is None or metric.key in keys else ():
            run = scores.design.runs.get(arm) or next(iter(scores.design.runs.values()))  # the base's: the first run's
            counts: dict[str, int] = {}
            for image in sorted(metric.arms[arm].images, key=lambda image: image.file):
                number = counts[image.prompt] = counts.get(image.prompt, -1) + 1
                file = os.path.relpath(os.path.join(lie_in, run.folder, image.file), out)
                yield [arm, metric.key, *place_of(image.prompt), number, image.value, file]
            if not metric.arms[arm].images:
                yield [arm, metric.key, "", "", "", metric.arms[arm].score.mean, ""]


def place_of(prompt: str) -> tuple[str, int]:
    """Return the set and the number of a prompt's name, such as "subject/3"."""
    name, _, number = prompt.rpartition("/")
    return name, int(number)


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV, its columns' names first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
