"""The recipes that the demo does not show, on the embedded base: what each learns looks more like the subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import limner
from limner.demonstration import DEMO_ARMS
from limner.families.source import ASSETS
from limner.metrics.scores import Scores
from limner.recipe import load_recipe, shipped_recipes
from limner.rundir import read_json

SHORT: dict[str, Any] = {
    "base": "tiny", "batch": 4, "optimizer.schedule": "cosine", "optimizer.warmup_steps": 0, "prior.enabled": False,
    "pictures.class_noun": "critter", "generation.num_inference_steps": 10, "generation.guidance_scale": 4.0,
    "evaluation.class_prompts": ["a photo of a {class_noun}"], "evaluation.other_prompts": ["a photo of a plant"],
    "evaluation.images_per_prompt": 1, "evaluation.images_per_class_prompt": 1,
}  # fmt: skip
LEARNS: dict[str, dict[str, Any]] = {
    "tiny-adapter": {"steps": 50, "learning_rate": 5e-3},
    "textual-inversion": {"steps": 40, "learning_rate": 3e-2},
    "pivotal": {"steps": 36, "learning_rate": 3e-3, "adapter.words.learning_rate": 2e-2},
}
"""What each takes to learn within seconds on this base."""


def test_every_recipe_that_learns_a_subject_is_shown_to() -> None:
    assert {*LEARNS, *DEMO_ARMS, "demo", "few-step"} == set(shipped_recipes())


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNS)
def test_a_recipe_learns_the_subject(name: str, tmp_path: Path) -> None:
    demo = load_recipe("demo").evaluation.prompts
    settings = {**SHORT, **LEARNS[name], "evaluation.prompts": list(demo)}
    if not load_recipe(name).prior.enabled:
        settings.pop("prior.enabled")
    run = limner.train(ASSETS / "demo" / "critter", recipe=name, settings=settings, run=tmp_path / "run")
    scores = Scores.model_validate(read_json(limner.evaluate(run.path)))
    fidelity = scores.find("subject_fidelity", "lite0")
    assert fidelity is not None
    (difference,) = fidelity.differences
    assert difference.score.low is not None
    assert difference.score.low > 0, difference.words
