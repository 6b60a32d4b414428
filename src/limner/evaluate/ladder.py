"""Score the pictures over strengths and numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limner.evaluate.encoders import Panel
from limner.evaluate.images import read_pictures
from limner.evaluate.look import Progress, Seen, look
from limner.evaluate.statistics import interval
from limner.metrics.encoder import TextImageEncoder
from limner.metrics.ladder import Ladder, LadderMetric, Place, Rung, RungScore
from limner.metrics.metric import Metric, View
from limner.metrics.scores import ImageValue
from limner.rundir import RunDir, read_json, write_json

KINDS = ("subject_fidelity", "prompt_following")


def evaluate_ladder(
    run: RunDir, panel: Panel, *, has_strength: bool, batch: int = 32, progress: Progress = lambda done, of, what: None
) -> Ladder:
    """Score every place's pictures with the first encoder of each question; write ladder.json, return what it holds."""
    places = {folder: _place(folder) for folder in sorted(run.ladder.glob("*")) if (folder / "manifest.json").is_file()}
    rows = {folder: read_json(folder / "manifest.json")["images"] for folder in places}
    subject, held_out = read_pictures(run.pictures), read_pictures(run.held_out)
    prompts = [row["plain_prompt"] for row in next(iter(rows.values()))]
    paths = [folder / row["file"] for folder in rows for row in rows[folder]]
    metrics = _first_of_each(panel)
    encoders = {one.name: one for one in panel.encoders}
    seen = {
        name: look(encoders[name], [*paths, *subject, *held_out], prompts, batch=batch, progress=progress)
        for name in {metric.encoder for metric in metrics}
    }
    rungs = [
        Rung(place=place, scores={m.key: _score(run, m, seen[m.encoder], folder, rows[folder], subject, held_out)
                                  for m in metrics})
        for folder, place in sorted(places.items(), key=lambda one: (one[1].strength, one[1].steps))
    ]  # fmt: skip
    ladder = Ladder(
        has_strength=has_strength, prompts=tuple(row["prompt"] for row in next(iter(rows.values()))),
        metrics=tuple(LadderMetric(key=m.key, title=m.question.title, better=m.question.better) for m in metrics),
        rungs=tuple(rungs),
    )  # fmt: skip
    write_json(run.ladder_scores, ladder.model_dump(mode="json"))
    return ladder


def _first_of_each(panel: Panel) -> list[Metric]:
    """Return the first metric of each question that its encoder can answer."""
    able = {one.name: one for one in panel.encoders}
    found = [
        next((m for m in panel.metrics if m.question.kind == kind and m.encoder in able
              and (not m.question.needs_text or isinstance(able[m.encoder], TextImageEncoder))), None)
        for kind in KINDS
    ]  # fmt: skip
    return [metric for metric in found if metric]


def _place(folder: Path) -> Place:
    manifest = read_json(folder / "manifest.json")
    return Place(strength=manifest["strength"], steps=manifest["num_inference_steps"])


def _score(
    run: RunDir, metric: Metric, seen: Seen, folder: Path, rows: Sequence[dict[str, str]],
    subject: Sequence[Path], held_out: Sequence[Path],
) -> RungScore:  # fmt: skip
    paths = [folder / row["file"] for row in rows]
    names = [f"subject/{row['prompt_index']}" for row in rows]
    images = seen.rows(paths)
    view = View(
        images=images, base=images, prompt=tuple(names), subject=seen.rows(subject), class_pictures=seen.rows(()),
        text=seen.text_rows([row["plain_prompt"] for row in rows]),
        held_out=seen.rows(held_out) if held_out else None,
    )  # fmt: skip
    values = metric.question.per_image(view).double().numpy()
    return RungScore(
        score=interval(values, names, seed=0),
        images=tuple(ImageValue(file=str(path.relative_to(run.path)), prompt=name, value=float(value))
                     for path, name, value in zip(paths, names, values, strict=True)),
    )  # fmt: skip
