"""Every shipped recipe runs its whole length: trained, drawn, and each group of what was to train has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

import limner
from limner.families.source import ASSETS
from limner.recipe import load_recipe, shipped_recipes
from limner.result import results
from limner.rundir import read_json

SMALL = {"steps": 2, "batch": 2, "generation.num_inference_steps": 2, "learning_rate": 1e-2,
         "pictures.class_noun": "critter", "optimizer.schedule": "constant"}  # fmt: skip
WARM = {"textual-inversion": {"optimizer.warmup_steps": 0}}


@pytest.fixture(params=["sd15", "xl"])
def base(request: pytest.FixtureRequest) -> Path:
    """Return the path of a very small base with random weights, one of each family."""
    return request.getfixturevalue(f"random_{request.param}")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_runs_end_to_end(name: str, base: Path, tmp_path: Path) -> None:
    prior = {"prior.count": 2} if load_recipe(name).prior.enabled else {}
    settings = {**SMALL, **WARM.get(name, {}), **prior, "base": str(base)}
    run = limner.train(ASSETS / "demo" / "critter", recipe=name, settings=settings, run=tmp_path / "run")
    assert results(run)
    told = read_json(run.provenance)
    assert all(change["norm"] > 0 for change in told["changes"].values())
    assert told["adapter"]["kind"] == load_recipe(name).adapter.kind
    token = load_recipe(name).pictures.token
    drawn = limner.generate(run.path, [f"a photo of a {token} critter"], seeds=[1, 2])
    assert len(list(drawn.glob("*.png"))) == 2
