"""Reads what scored run folders hold about themselves; whatever an early stop left out is simply absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import UserError
from limner.metrics.course import Course
from limner.metrics.inference import Inference, read_inference
from limner.metrics.scores import MetricScore, Scores, read_written
from limner.rundir import RunDir, read_json

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Shot:
    """One prompt and seed, with the image that each arm made of it."""

    set: str
    prompt: str
    prompt_index: int
    image_index: int
    seed: int
    files: dict[str, Path]
    """By arm."""

    @property
    def name(self) -> str:
        """Return a name that a link can point to."""
        return f"{self.set}-{self.prompt_index:02d}-{self.image_index:02d}"


@dataclass(frozen=True)
class Trained:
    """A tuned arm, and what its run tells about the training."""

    arm: str
    run: RunDir
    previews: tuple[tuple[int, Path], ...]
    """The first preview of each step that has one: step, picture."""
    class_pictures: tuple[dict[str, Any], ...]
    """Their manifest rows, each with "file" as a whole path."""
    steps: tuple[dict[str, Any], ...]
    validations: tuple[dict[str, Any], ...]
    """The log's rows of the loss on held-out pictures."""
    course: Course | None
    """What was judged during training; None where nothing was."""
    phases: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]
    recipe: str
    inference: Inference | None = None
    """How fast it draws, where that was measured."""

    @property
    def name(self) -> str:
        """Return the run's own name."""
        return self.run.path.resolve().name

    @property
    def file(self) -> str:
        """Return the name of what was learned: the folder of a whole model, an adapter's file, a folder of words."""
        places = (self.run.model, self.run.adapter, self.run.path / "embeddings")
        return next((place.name for place in places if place.exists()), self.run.adapter.name)


@dataclass(frozen=True)
class Material:
    """Everything that a report is made of."""

    scores: Scores
    shots: tuple[Shot, ...]
    pictures: tuple[dict[str, Any], ...]
    """The training pictures' manifest rows, each with "file" as a whole path."""
    fitting: dict[str, Any]
    """How the training pictures were fitted: given, exclusions, batch, buckets."""
    held_out: tuple[dict[str, Any], ...]
    """The held-out pictures' manifest rows."""
    trained: tuple[Trained, ...]
    """The tuned arms."""
    base: str
    """What the user called the base."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the arms' names, the base first."""
        return self.scores.design.arms

    @property
    def tuned(self) -> tuple[str, ...]:
        """Return the arms that are not the base."""
        return self.arms[1:]

    def values(self, metric: MetricScore, arm: str) -> dict[Path, float]:
        """Return an arm's value for each of its images."""
        folder = next((t.run.path for t in self.trained if t.arm == arm), self.trained[0].run.path)
        return {folder / image.file: image.value for image in metric.arms[arm].images}


def gather(runs: Sequence[RunDir], path: Path) -> Material:
    """Read runs and the scores that evaluate wrote of them to `path`."""
    again = f"limner evaluate {' '.join(str(run.path) for run in runs)}"
    if not path.is_file():
        raise UserError(f"{path}: is not there yet.", f"Make it with: {again}")
    scores = read_written(Scores, path, f"Score again: {again}")
    scored = {(path.parent / info.folder).resolve(): arm for arm, info in scores.design.runs.items()}
    if scored.keys() != {run.path.resolve() for run in runs}:
        names = ", ".join(info.name for info in scores.design.runs.values())
        raise UserError(f"{path}: holds the scores of other runs ({names}).", f"Score these: {again}")
    of_arm = {scored[run.path.resolve()]: run for run in runs}
    ordered = {arm: of_arm[arm] for arm in scores.design.runs}
    first_run = next(iter(ordered.values()))
    folders = {BASE: first_run.images / BASE, **{arm: run.images / TUNED for arm, run in ordered.items()}}
    manifests = {folder: read_json(folder / "manifest.json") for folder in folders.values()}
    material = Material(
        scores=scores,
        shots=_shots(folders, manifests),
        pictures=_rows(first_run.pictures),
        fitting=_manifest(first_run.pictures),
        held_out=next(filter(None, (_rows(run.held_out) for run in ordered.values())), ()),
        trained=tuple(_trained(arm, run) for arm, run in ordered.items()),
        base=manifests[folders[BASE]]["base"],
    )
    shown = {file for shot in material.shots if shot.files.keys() == folders.keys() for file in shot.files.values()}
    for arm, folder in folders.items():
        if any(material.values(metric, arm).keys() - shown for metric in scores.metrics):
            raise UserError(f"{folder}: changed after {path} was written.", f"Score again: {again}")
    return material


def _trained(arm: str, run: RunDir) -> Trained:
    return Trained(
        arm=arm,
        run=run,
        previews=_previews(run),
        class_pictures=_rows(run.class_pictures),
        steps=tuple(run.read_log("step")),
        validations=tuple(run.read_log("validation")),
        course=read_written(Course, run.course, "Train again.") if run.course.is_file() else None,
        phases=tuple(run.read_log("phase")),
        provenance=read_json(run.provenance) if run.provenance.is_file() else {},
        recipe=run.recipe.read_text(encoding="utf-8") if run.recipe.is_file() else "",
        inference=read_inference(run.inference),
    )


def _shots(folders: dict[str, Path], manifests: dict[Path, dict[str, Any]]) -> tuple[Shot, ...]:
    files: dict[tuple[str, int, int], dict[str, Path]] = {}
    for arm, folder in folders.items():
        for row in manifests[folder]["images"]:
            pair = (row["set"], row["prompt_index"], row["image_index"])
            files.setdefault(pair, {})[arm] = folder / row["file"]
    rows = manifests[folders[BASE]]["images"]
    return tuple(
        Shot(
            set=row["set"],
            prompt=row["prompt"],
            prompt_index=row["prompt_index"],
            image_index=row["image_index"],
            seed=row["seed"],
            files=files[row["set"], row["prompt_index"], row["image_index"]],
        )
        for row in sorted(rows, key=lambda row: (row["set"], row["prompt_index"], row["image_index"]))
    )


def _previews(run: RunDir) -> tuple[tuple[int, Path], ...]:
    """Return the first preview of each step, in order of the steps."""
    found = []
    for manifest in sorted(run.previews.glob("step-*/manifest.json")):
        images = read_json(manifest)["images"]
        if images:
            found.append((int(manifest.parent.name.removeprefix("step-")), manifest.parent / images[0]["file"]))
    return tuple(sorted(found))


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = folder / "manifest.json"
    return read_json(manifest) if manifest.is_file() else {}


def _rows(folder: Path) -> tuple[dict[str, Any], ...]:
    content = _manifest(folder)
    rows = content.get("pictures") or content.get("images") or []
    return tuple({**row, "file": folder / row["file"]} for row in rows)
