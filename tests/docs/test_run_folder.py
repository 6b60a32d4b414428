"""The page about the run folder: its files, the events of the log and their fields are those of a real run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import limner
from limner.families.source import ASSETS
from limner.metrics import inference
from limner.rundir import RunDir

PICTURES = ASSETS / "demo" / "critter"


@pytest.fixture(scope="module")
def run(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train with class pictures, previews and a warning, and draw the comparison."""
    settings = {
        "base": str(random_base), "steps": 3, "prior.count": 2, "preview.every_steps": 1, "preview.images": 1,
        "generation.num_inference_steps": 1, "evaluation.images_per_prompt": 1, "evaluation.prompts": ["a {subject}"],
        "evaluation.class_prompts": [], "evaluation.other_prompts": [], "checkpoint.every_steps": 1,
    }  # fmt: skip
    made = limner.train(PICTURES, recipe="demo", settings=settings, run=tmp_path_factory.mktemp("run"))
    made.append_log("warning", step=3, text="as stepping writes it")
    made.append_log("validation", step=3, validation_loss=0.1)
    made.append_log("judged", step=3, scores={"subject_fidelity": 0.5})
    made.append_log("stopped", step=3, text="as stepping writes it")
    limner.generate(made.path)
    return made


def rows(root: Path, title: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names in backticks of the first two columns of the table under a title."""
    page = (root / "docs" / "run_folder.md").read_text(encoding="utf-8")
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = line.split("|")
            yield re.findall(r"`([^`]+)`", cells[1]), re.findall(r"`([^`]+)`", cells[2])


def test_every_file_is_described(root: Path, run: RunDir) -> None:
    described = {name for names, _ in rows(root, "What is in it") for name in names}
    assert {path.name for path in run.path.iterdir()} <= described
    paths = {name for name, value in vars(RunDir).items() if isinstance(value, property)}
    own = {path.name for name in paths if (path := getattr(run, name)).parent == run.path}
    beside = {"embeddings", "tensorboard", "wandb", "dvclive", "scores.csv", "README.md"}
    assert own | beside == described


def test_every_event_has_the_fields_that_are_described(root: Path, run: RunDir) -> None:
    described = {name: set(fields) for (name,), fields in rows(root, "`log.jsonl`")}
    found: dict[str, set[str]] = {}
    for line in run.log.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        found.setdefault(event.pop("event"), set()).update(event)
    assert found == described


def test_every_field_of_the_inference_file_is_described(root: Path) -> None:
    described = {name: set(fields) for (name,), fields in rows(root, "`inference.json`")}
    parts = {
        "design": inference.InferenceDesign, "arms": inference.InferenceArm, "memory": inference.Memory,
        "merge": inference.MergeCheck, "measurements": inference.Measurement, "to_base": inference.Ratio,
        "left_out": inference.LeftOut,
    }  # fmt: skip
    assert {name: set(part.model_fields) for name, part in parts.items()} == described
    inner = {"memory", "merge", "to_base", "schema_version"}
    assert set(inference.Inference.model_fields) | inner == described.keys() | {"schema_version"}


def test_the_provenance_is_described(root: Path, run: RunDir) -> None:
    described = {name for names, _ in rows(root, "`provenance.json`") for name in names}
    assert set(json.loads(run.provenance.read_text(encoding="utf-8"))) <= described
