"""Runs that draw with a refiner, and runs on one: what draws, what is written down, what is learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import limner
from benchmarks.refiner_identity import QUESTIONS, measure, table
from limner.export.embedding import write_embedding
from limner.families.load import load
from limner.families.source import ASSETS
from limner.recipe import load_recipe, save_recipe
from limner.result import attach_result
from limner.rundir import RunDir, read_json
from limner.seeds import generator
from tests.pipeline.conftest import Result
from tests.unit.test_refining import Said

PICTURES = ASSETS / "demo" / "critter"
FEW = {
    "steps": 3, "generation.num_inference_steps": 5, "preview.every_steps": 3, "preview.images": 1,
    "evaluation.images_per_prompt": 1, "evaluation.prompts": ["a {subject}"], "evaluation.class_prompts": [],
    "evaluation.other_prompts": ["a photo of a house"], "evaluation.images_per_class_prompt": 1,
}  # fmt: skip


def pictures_in(folder: Path) -> list[bytes]:
    found = sorted(folder.glob("*.png"))
    assert found, folder
    return [picture.read_bytes() for picture in found]


def identity(base: Path) -> dict[str, str]:
    return load(str(base), dtype=torch.float32, device="cpu").identity


@pytest.fixture(scope="module")
def on_base(random_xl: Path, random_refiner: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train on the base, with a refiner for its pictures, and draw the comparison."""
    settings = {**FEW, "base": str(random_xl), "generation.refiner": str(random_refiner), "prior.enabled": False}
    run = limner.train(PICTURES, recipe="demo", settings=settings, run=tmp_path_factory.mktemp("runs") / "refined")
    limner.generate(run.path)
    return run


def test_the_refiner_draws_the_comparison_and_no_previews(on_base: RunDir, random_refiner: Path) -> None:
    refiner = identity(random_refiner)
    for side in ("base", "tuned"):
        manifest = read_json(on_base.images / side / "manifest.json")
        assert (manifest["refiner"], manifest["refiner_identity"]) == (str(random_refiner), refiner)
    assert read_json(on_base.provenance)["refiner"] == {"name": str(random_refiner), "identity": refiner}
    preview = read_json(on_base.previews / "step-000003" / "manifest.json")
    assert preview["refiner"] == ""
    assert "refiner_identity" not in preview


def test_with_and_without_the_refiner_compare_as_two_runs(on_base: RunDir, random_refiner: Path) -> None:
    """The way that the guide tells: a copy of the run whose recipe names no refiner, and `evaluate` over both."""
    alone = RunDir(on_base.path.with_name("alone"))
    shutil.copytree(on_base.path, alone.path)
    save_recipe(load_recipe(alone.recipe, {"generation.refiner": ""}), alone.recipe)
    scores = json.loads(limner.evaluate([alone.path, on_base.path]).read_text(encoding="utf-8"))
    assert scores["design"]["arms"] == ["base", "lora without refiner", f"lora refiner {random_refiner.name}"]
    apart = [run["settings"] for run in scores["design"]["runs"].values()]
    assert apart == [{"generation.refiner": ""}, {"generation.refiner": str(random_refiner)}]
    for side in ("base", "tuned"):
        assert pictures_in(alone.images / side) != pictures_in(on_base.images / side)


@pytest.fixture(scope="module")
def on_refiner(
    random_xl: Path, random_refiner: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, list[str]]:
    """Train on the refiner, with a base that begins its pictures: class pictures, previews, the comparison."""
    settings = {**FEW, "base": str(random_refiner), "generation.begun_by": str(random_xl), "prior.count": 2,
                "batch": 2, "learning_rate": 0.1}  # fmt: skip
    watch = Said()
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = limner.train(PICTURES, recipe="demo", settings=settings, run=folder, watch=watch)
    limner.generate(run.path)
    return run, watch.lines


def test_a_run_on_a_refiner_learns_where_it_is_used_and_says_so(on_refiner: tuple[RunDir, list[str]]) -> None:
    run, said = on_refiner
    assert "objective.timestep_range=[0, 0.2]: the noise that a refiner is made for" in said
    drawn = [t for row in run.read_log("step") for t in row["timesteps"]]
    assert len(drawn) == 3 * 4
    assert max(drawn) < 200
    assert load_recipe(run.recipe).objective.timestep_range == (0.0, 0.2)


def test_the_base_begins_everything_that_a_run_on_a_refiner_draws(
    on_refiner: tuple[RunDir, list[str]], random_xl: Path, own_cache: Path
) -> None:
    run, _ = on_refiner
    begun_by = identity(random_xl)
    assert read_json(run.provenance)["begun_by"] == {"name": str(random_xl), "identity": begun_by}
    kept = sorted((own_cache / "class-pictures").glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    for manifest in (kept[-1], *(run.images / side / "manifest.json" for side in ("base", "tuned")),
                     run.previews / "step-000003" / "manifest.json"):  # fmt: skip
        assert read_json(manifest)["begun_by_identity"] == begun_by, manifest
    assert pictures_in(run.images / "base") != pictures_in(run.images / "tuned")


def test_a_tuned_refiner_finishes_alike_from_either_side(
    on_refiner: tuple[RunDir, list[str]], random_xl: Path, random_refiner: Path, tmp_path: Path
) -> None:
    """A run on the refiner, begun by the base, or the base with the refiner and the run's file: the same pictures."""
    run = on_refiner[0]
    own = load_recipe(run.recipe).generation.model_dump(exclude={"refiner", "begun_by"})
    alike = {f"generation.{key}": value for key, value in own.items() if key != "negative_prompt"}
    refined, begun_by = {**alike, "generation.refiner": str(random_refiner)}, {"generation.begun_by": str(random_xl)}

    def drawn(source: Path, name: str, settings: dict[str, Any], **more: Any) -> list[bytes]:
        out = tmp_path / name
        return pictures_in(limner.generate(source, ["a critter"], seeds=[1, 2], out=out, settings=settings, **more))

    plain = drawn(random_xl, "base", refined)
    assert plain == drawn(random_refiner, "refiner", {**alike, **begun_by})
    tuned = drawn(run.path, "run", {})
    assert tuned != plain
    assert tuned == drawn(random_xl, "file", refined, adapters=[(run.adapter, 1.0)])


def test_a_run_on_a_refiner_that_nothing_begins_trains_and_is_not_compared(
    run_limner: Callable[..., Result], random_xl: Path, random_refiner: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [f"{key}={json.dumps(value)}" for key, value in FEW.items() if not key.startswith("preview")]
    code, _, err = run_limner("train", PICTURES, "--recipe", "demo", "--run", run, f"base={random_refiner}",
                              "prior.enabled=false", *words)  # fmt: skip
    assert code == 0, err
    assert "without generation.begun_by=BASE this run will not be compared" in err
    code, _, err = run_limner("evaluate", run)
    assert code == 2
    assert "cannot begin a picture. Name the base that does (for a run in its recipe.toml)" in err
    save_recipe(load_recipe(run / "recipe.toml", {"generation.begun_by": str(random_xl)}), run / "recipe.toml")
    code, _, err = run_limner("generate", run)
    assert code == 0, err


def test_a_learned_word_means_the_same_to_a_refiner_that_reads_with_the_same_encoder(
    random_xl: Path, random_refiner: Path, tmp_path: Path
) -> None:
    shared = shutil.copytree(random_refiner, tmp_path / "refiner")
    shutil.rmtree(shared / "text_encoder_2")
    shutil.copytree(random_xl / "text_encoder_2", shared / "text_encoder_2")
    run, draws = RunDir(tmp_path / "run"), generator("word", 1)
    vectors = {
        "text_encoder": torch.randn(2, 16, generator=draws),
        "text_encoder_2": torch.randn(2, 24, generator=draws),
    }
    run.embedding("<it>").parent.mkdir(parents=True)
    write_embedding(vectors, run.embedding("<it>"), token="<it>", about={})
    for refiner, knows in ((shared, True), (random_refiner, False)):
        family, family_refiner = (load(str(f), dtype=torch.float32, device="cpu") for f in (random_xl, refiner))
        family.refiner = family_refiner
        attached = attach_result(family, run)
        assert ("<it>" in family.refiner.placeholders) == knows
        if knows:
            own, other = (f.encode_text(["a <it>"]) for f in (family, family.refiner))
            assert torch.equal(own.hidden[..., 16:], other.hidden)
        for one in attached:
            one.detach()
        assert not family.refiner.placeholders


def test_the_benchmark_scores_every_arm_on_the_same_prompts(
    random_xl: Path, random_refiner: Path, tmp_path: Path
) -> None:
    few = {**FEW, "preview.every_steps": 0, "pictures.class_noun": "critter", "evaluation.images_per_prompt": 2}
    settings = {key: value for key, value in few.items() if key != "preview.images"}
    found = measure(PICTURES, str(random_xl), str(random_refiner), tmp_path, tune_refiner=True, settings=settings)
    arms = ["base", "base + refiner", "tuned", "tuned + refiner", "tuned + tuned refiner"]
    for metric in found["subject_fidelity"]:
        assert list(metric["arms"]) == arms
        assert [(one["arm"], one["to"]) for one in metric["differences"]] == QUESTIONS
        for one in metric["differences"]:
            assert one["low"] <= one["mean"] <= one["high"]
    drawn = [pictures_in(tmp_path / "arms" / name / "images" / "tuned") for name in arms]
    assert all(one != other for i, one in enumerate(drawn) for other in drawn[:i])
    assert "tuned + refiner - tuned " in "\n".join(table(found))
    again = measure(PICTURES, str(random_xl), str(random_refiner), tmp_path, tune_refiner=True, settings=settings)
    assert again == found
