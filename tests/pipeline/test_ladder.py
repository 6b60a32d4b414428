"""Pictures at several strengths and numbers of steps, for each kind of result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import limner
from limner.families.source import ASSETS
from limner.rundir import RunDir, read_json

FAST: dict[str, Any] = {
    "pictures.class_noun": "critter", "steps": 2, "learning_rate": 1e-2, "generation.num_inference_steps": 2,
    "evaluation.images_per_prompt": 1, "evaluation.images_per_class_prompt": 1, "prior.enabled": False,
    "evaluation.prompts": ["a photo of a {subject}", "a {subject} in the snow"],
    "evaluation.class_prompts": ["a {class_noun}"], "evaluation.other_prompts": ["a photo of a house"],
    "evaluation.strengths": [1.0, 0.5], "evaluation.inference_steps": [1, 2], "generation.batch": 2,
}  # fmt: skip
ADAPTERS = {
    "lora": ({}, ["0.5x1", "0.5x2", "0x1", "0x2", "1x1", "1x2"]),
    "full": ({"adapter.kind": "full", "adapter.targets": "all"}, ["0x1", "0x2", "1x1", "1x2"]),
    "textual_inversion": ({"adapter.kind": "textual_inversion"}, ["0x1", "0x2", "1x1", "1x2"]),
}


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_strength_0_is_the_base_and_1_what_was_trained(kind: str, random_base: Path, tmp_path: Path) -> None:
    own, places = ADAPTERS[kind]
    run = limner.train(ASSETS / "demo" / "critter", run=tmp_path / "run",
                       settings={**FAST, **own, "base": str(random_base)})  # fmt: skip
    limner.evaluate(run.path)

    assert sorted(folder.name for folder in run.ladder.iterdir()) == places
    for side, name in (("base", "0x2"), ("tuned", "1x2")):
        for file in ("subject-00-00.png", "subject-01-00.png"):
            assert (run.ladder / name / file).read_bytes() == (run.images / side / file).read_bytes()
    rungs = read_json(run.ladder_scores)["rungs"]
    assert [f"{r['place']['strength']:g}x{r['place']['steps']}" for r in rungs] == sorted(
        places, key=lambda p: float(p[: p.index("x")])
    )
    assert read_json(run.ladder_scores)["has_strength"] is (kind == "lora")


def test_what_is_no_longer_asked_for_goes(random_base: Path, tmp_path: Path) -> None:
    run = limner.train(ASSETS / "demo" / "critter", run=tmp_path / "run", settings={**FAST, "base": str(random_base)})
    limner.generate(run.path)
    recipe = run.recipe.read_text(encoding="utf-8")
    run.recipe.write_text(
        recipe.replace("strengths = [\n    0.5,\n    1.0,\n]", "strengths = [\n    1.0,\n]"), encoding="utf-8"
    )
    limner.generate(run.path)
    assert sorted(folder.name for folder in RunDir(run.path).ladder.iterdir()) == ["0x1", "0x2", "1x1", "1x2"]
