"""The command line on real input: the whole length, Ctrl-C, resume, and the library's six lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import limner
from limner.families.source import ASSETS
from tests.pipeline.conftest import Result

PICTURES = ASSETS / "demo" / "critter"
FAST = ("steps=4", "batch=2", "prior.count=3", "generation.num_inference_steps=3", "checkpoint.every_steps=2",
        "evaluation.images_per_prompt=1", "evaluation.images_per_class_prompt=1")  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(str(run / "adapter.safetensors"))


def test_a_very_long_setting_is_a_setting(run_limner: Callable[..., Result]) -> None:
    """Longer than any file name may be: asking the disk for it must not end in a traceback."""
    code, _, err = run_limner("check", PICTURES, "base=tiny", "pictures.nothing=" + "x" * 5000)
    assert code == 2
    assert "pictures.nothing is not a setting" in err


def test_whole_length(run_limner: Callable[..., Result], random_base: Path, tmp_path: Path) -> None:
    """Train, draw, score, report: each leaves what the next one needs, and prints where it is."""
    run = tmp_path / "run"
    code, out, err = run_limner("train", PICTURES, "--recipe", "demo", "--run", run, f"base={random_base}", *FAST)
    assert code == 0, err
    assert out.splitlines()[-1] == f"adapter: {run / 'adapter.safetensors'}"
    made = {
        "adapter.safetensors",
        "checkpoints",
        "class_pictures",
        "data_files.json",
        "log.jsonl",
        "pictures",
        "provenance.json",
        "recipe.toml",
    }
    assert {p.name for p in run.iterdir()} == made
    code, _, said = run_limner("check", PICTURES, "--recipe", "demo", f"base={random_base}", *FAST)
    assert code == 0
    assert re.search(r"= 4 steps .*\n2 checkpoints, about [\d.]+ s, by the last such run here", said), said
    counted = json.loads((run / "provenance.json").read_text())["adapter"]
    assert counted["trainable_parameters"] == sum(t.numel() for t in weights(run).values())
    assert counted["file_bytes"] == (run / "adapter.safetensors").stat().st_size

    code, out, _ = run_limner("generate", run)
    assert (code, out.strip()) == (0, str(run / "images"))
    manifests = [json.loads((run / "images" / arm / "manifest.json").read_text()) for arm in ("base", "tuned")]
    assert manifests[0]["images"] == manifests[1]["images"]

    code, out, _ = run_limner(
        "generate", run, "--prompt", "a sks critter", "--seeds", "5,6", "--out", tmp_path / "own", *FAST[3:4]
    )
    assert (code, len(list((tmp_path / "own").glob("*.png")))) == (0, 2)

    code, out, _ = run_limner("evaluate", run)
    assert (code, out.strip()) == (0, str(run / "scores.json"))
    code, out, _ = run_limner("report", run, "--json")
    assert (code, json.loads(out)) == (0, {"report": str(run / "report.html")})
    assert "<html" in (run / "report.html").read_text()

    code, _, err = run_limner("train", "--resume", run)
    assert code == 2
    assert "already finished: 4 of 4 steps" in err
    tuned = (run / "images" / "tuned" / "subject-00-00.png").read_bytes()
    code, _, err = run_limner("train", "--resume", run, "steps=12")
    assert code == 0, err
    assert run_limner("generate", run)[0] == 0
    assert (run / "images" / "tuned" / "subject-00-00.png").read_bytes() != tuned, "pictures of the old adapter stayed"


def test_library_use_is_as_short(random_base: Path, tmp_path: Path) -> None:
    run = limner.train(
        PICTURES,
        recipe="demo",
        run=tmp_path / "run",
        settings={"base": str(random_base), "steps": 2, "prior.enabled": False},
    )
    folder = limner.generate(run.path, ["a sks critter"], seeds=[1], settings={"generation.num_inference_steps": 2})
    assert run.adapter.is_file()
    assert len(list(folder.glob("*.png"))) == 1


def test_same_seed_twice_gives_the_same_file(random_base: Path, tmp_path: Path) -> None:
    settings = {"base": str(random_base), "steps": 3, "prior.enabled": False}
    first, second = (
        limner.train(PICTURES, recipe="demo", run=tmp_path / n, settings=settings).adapter for n in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()


def test_the_saved_recipe_of_a_run_gives_the_same_file(
    run_limner: Callable[..., Result], random_base: Path, tmp_path: Path
) -> None:
    settings = {"base": str(random_base), "steps": 3, "prior.enabled": False, "optimizer.warmup_fraction": 0.4}
    first = limner.train(PICTURES, recipe="demo", run=tmp_path / "first", settings=settings)
    code, _, err = run_limner("train", PICTURES, "--recipe", first.recipe, "--run", tmp_path / "second")
    assert code == 0, err
    assert "prior.count has no effect, because prior.enabled is false" in err
    assert (tmp_path / "second" / "recipe.toml").read_bytes() == first.recipe.read_bytes()
    assert (tmp_path / "second" / "adapter.safetensors").read_bytes() == first.adapter.read_bytes()


def test_a_prior_of_weight_0_is_a_prior_that_is_off(random_base: Path, tmp_path: Path) -> None:
    settings = {"base": str(random_base), "steps": 2, "generation.num_inference_steps": 2}
    off = limner.train(PICTURES, recipe="demo", run=tmp_path / "off", settings={**settings, "prior.enabled": False})
    zero = limner.train(PICTURES, recipe="demo", run=tmp_path / "zero", settings={**settings, "prior.weight": 0})
    expected = weights(off.path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(zero.path).items())
    assert not zero.class_pictures.exists()
