"""Reads what a run folder holds about itself; whatever an early stop left out is simply absent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limner.errors import UserError
from limner.metrics.scores import Scores
from limner.rundir import RunDir, read_json

BASE = "base"


@dataclass(frozen=True)
class Shot:
    """One prompt and seed, with the image that each arm made of it."""

    set: str
    prompt: str
    prompt_index: int
    image_index: int
    seed: int
    files: dict[str, str]
    """Path inside the run folder, by arm."""

    @property
    def name(self) -> str:
        """Return a name that a link can point to."""
        return f"{self.set}-{self.prompt_index:02d}-{self.image_index:02d}"


@dataclass(frozen=True)
class Material:
    """Everything that a run's report is made of."""

    run: RunDir
    scores: Scores
    shots: tuple[Shot, ...]
    pictures: tuple[dict[str, Any], ...]
    """The training pictures' manifest rows, each with "file" as a path inside the run folder."""
    class_pictures: tuple[dict[str, Any], ...]
    previews: tuple[tuple[int, str], ...]
    """The first preview of each step that has one: step, path inside the run folder."""
    manifest: dict[str, Any]
    """How the base's images were made."""
    steps: tuple[dict[str, Any], ...]
    phases: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]
    recipe: str

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the arms' names, the base first."""
        return self.scores.design.arms

    @property
    def tuned(self) -> tuple[str, ...]:
        """Return the arms that are not the base."""
        return self.arms[1:]


def gather(run: RunDir) -> Material:
    """Read a run folder that evaluate has scored."""
    if not run.scores.is_file():
        raise UserError(f"{run.path}: has no scores.json yet.", f"Make it with: limner evaluate {run.path}")
    try:
        scores = Scores.model_validate(read_json(run.scores))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{run.scores}: {where}: {first['msg']}.", f"Score the run again: limner evaluate {run.path}"
        ) from error
    manifests = {arm: read_json(run.images / arm / "manifest.json") for arm in scores.design.arms}
    return Material(
        run=run,
        scores=scores,
        shots=_shots(run, manifests),
        pictures=_rows(run, run.pictures),
        class_pictures=_rows(run, run.class_pictures),
        previews=_previews(run),
        manifest=manifests[BASE],
        steps=tuple(run.read_log("step")),
        phases=tuple(run.read_log("phase")),
        provenance=read_json(run.provenance) if run.provenance.is_file() else {},
        recipe=run.recipe.read_text(encoding="utf-8") if run.recipe.is_file() else "",
    )


def _shots(run: RunDir, manifests: dict[str, dict[str, Any]]) -> tuple[Shot, ...]:
    files: dict[tuple[str, int, int], dict[str, str]] = {}
    for arm, manifest in manifests.items():
        for row in manifest["images"]:
            pair = (row["set"], row["prompt_index"], row["image_index"])
            files.setdefault(pair, {})[arm] = str((run.images / arm / row["file"]).relative_to(run.path))
    rows = {(row["set"], row["prompt_index"], row["image_index"]): row for row in manifests[BASE]["images"]}
    return tuple(
        Shot(
            set=row["set"],
            prompt=row["prompt"],
            prompt_index=row["prompt_index"],
            image_index=row["image_index"],
            seed=row["seed"],
            files=files[pair],
        )
        for pair, row in sorted(rows.items())
    )


def _previews(run: RunDir) -> tuple[tuple[int, str], ...]:
    """Return the first preview of each step, in order of the steps."""
    found = []
    for manifest in sorted(run.previews.glob("step-*/manifest.json")):
        images = read_json(manifest)["images"]
        if images:
            file = manifest.parent / images[0]["file"]
            found.append((int(manifest.parent.name.removeprefix("step-")), str(file.relative_to(run.path))))
    return tuple(sorted(found))


def _rows(run: RunDir, folder: Path) -> tuple[dict[str, Any], ...]:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return ()
    content = read_json(manifest)
    rows = content.get("pictures") or content.get("images") or []
    return tuple({**row, "file": str((folder / row["file"]).relative_to(run.path))} for row in rows)
