"""Score the pictures over strengths and numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limner.evaluate.encoders import Panel
from limner.evaluate.images import ArmImage, read_images, read_pictures
from limner.evaluate.look import Progress, Seen, look
from limner.evaluate.statistics import interval
from limner.metrics.ladder import Ladder, LadderMetric, Place, Rung, RungScore
from limner.metrics.metric import Metric, View
from limner.metrics.scores import ImageValue
from limner.metrics.standard import first_of
from limner.rundir import RunDir, read_json, write_json

MANIFEST = "manifest.json"
KINDS = ("subject_fidelity", "prompt_following")


def evaluate_ladder(
    run: RunDir, panel: Panel, *, batch: int = 32, progress: Progress = lambda done, of, what: None
) -> Ladder:
    """Score every place's pictures with the first encoder of each question; write ladder.json, return what it holds."""
    drawn = {_place(folder): read_images(folder) for folder in run.ladder.glob("*") if (folder / MANIFEST).is_file()}
    places = sorted(drawn, key=lambda place: place.order)
    subject, held_out = read_pictures(run.sitter), read_pictures(run.held_out)
    paths = [image.path for place in places for image in drawn[place]]
    prompts = [image.plain_prompt for image in drawn[places[0]]]
    metrics = first_of(panel.metrics, KINDS)
    encoders = {one.name: one for one in panel.encoders}
    seen = {
        name: look(encoders[name], [*paths, *subject, *held_out], prompts, batch=batch, progress=progress)
        for name in dict.fromkeys(metric.encoder for metric in metrics)
    }
    rungs = [
        Rung(place=place,
             scores={m.key: _score(run, m, seen[m.encoder], drawn[place], subject, held_out) for m in metrics})
        for place in places
    ]  # fmt: skip
    ladder = Ladder(
        has_strength=run.has_strength(), prompts=tuple(image.prompt for image in drawn[places[0]]),
        metrics=tuple(LadderMetric(key=m.key, title=m.question.title, better=m.question.better) for m in metrics),
        rungs=tuple(rungs),
    )  # fmt: skip
    write_json(run.ladder_scores, ladder.model_dump(mode="json"))
    return ladder


def _place(folder: Path) -> Place:
    manifest = read_json(folder / MANIFEST)
    return Place(strength=manifest["strength"], steps=manifest["num_inference_steps"],
                 arm=manifest.get("ladder_arm", ""))  # fmt: skip


def _score(
    run: RunDir, metric: Metric, seen: Seen, rows: Sequence[ArmImage], subject: Sequence[Path],
    held_out: Sequence[Path],
) -> RungScore:  # fmt: skip
    names = [row.prompt_key for row in rows]
    images = seen.rows([row.path for row in rows])
    view = View(
        images=images, base=images, prompt=tuple(names), subject=seen.rows(subject), class_pictures=seen.rows(()),
        text=seen.text_rows([row.plain_prompt for row in rows]),
        held_out=seen.rows(held_out) if held_out else None,
    )  # fmt: skip
    values = metric.question.per_image(view).double().numpy()
    return RungScore(
        score=interval(values, names, seed=0),
        images=tuple(ImageValue(file=str(row.path.relative_to(run.path)), prompt=row.prompt_key, value=float(value))
                     for row, value in zip(rows, values, strict=True)),
    )  # fmt: skip
