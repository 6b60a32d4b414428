"""Runs that go wrong: a destroyed adapter, a VAE that overflows, black pictures, previews that cannot be drawn."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import limner
from limner.errors import UserError
from limner.families.family import Family
from limner.families.source import ASSETS
from limner.generate.draw import Sampling, draw, requests_for
from limner.generate.faults import constant_colour
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.encode import prepare
from limner.rundir import RunDir, read_json
from limner.watch import Watch
from tests.pipeline.conftest import Result

PICTURES = ASSETS / "demo" / "critter"


class Said(Watch):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def with_vae(base: Path, folder: Path, **scale: float) -> Path:
    """Copy a base and multiply weights of its VAE, each by its own factor; return the copy."""
    shutil.copytree(base, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(str(file))
    for name, factor in scale.items():
        for part in ("weight", "bias"):
            tensors[f"{name.replace('__', '.')}.{part}"] *= factor
    save_file(tensors, str(file), {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["random_base", "random_xl"])
def test_a_learning_rate_of_a_million_stops_with_the_last_good_checkpoint(
    name: str, run_limner: Callable[..., Result], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run, base = tmp_path / "run", request.getfixturevalue(name)
    words = ("train", PICTURES, "--recipe", "demo", "--run", run, f"base={base}", "prior.enabled=false")
    code, out, err = run_limner(*words, "learning_rate=1e6", "checkpoint.every_steps=1", "steps=40")
    assert (code, out) == (3, "")
    last = err.splitlines()[-1]
    found = re.search(r"^Stopped at step (\d+): .* was not finite 5 times in a row \(pictures: \d.png, .*; timesteps "
                      r"\d+, .*; learning rate .*; float32\)\. Last good checkpoint: step (\d+), with its adapter "
                      r"in .*run\. Begin again with learning_rate=1e-4 or less\.$", last)  # fmt: skip
    assert found, err
    assert int(found[1]) <= int(found[2]) + 5
    newest = max((run / "checkpoints").glob("step-*"))
    for file in (newest / "state.safetensors", run / "adapter.safetensors"):
        assert all(bool(t.isfinite().all()) for t in load_file(str(file)).values() if t.is_floating_point())
    assert RunDir(run).read_log("stopped")[0]["text"].startswith("Stopped at step")
    assert "NaN" not in (run / "log.jsonl").read_text()


def test_a_vae_that_overflows_in_float16_gives_finite_latents_and_pictures(random_base: Path, tmp_path: Path) -> None:
    """Its first layers make numbers beyond 65504, and its norms would bring them back."""
    from limner.families.load import fingerprints, load

    base = with_vae(random_base, tmp_path / "base", encoder__conv_in=3e5, decoder__conv_in=3e5)
    family: Family = load(str(base), dtype=torch.float32, device="cpu")
    family.vae.half()
    before = fingerprints(family)
    spec = Pictures(class_noun="critter")
    checked = check_pictures([PICTURES], spec, resolution_px=64)
    prepared = prepare(checked, family, spec=spec, cache=tmp_path / "cache", batch=5)
    assert bool(prepared.batch(0, seed=1).moments.isfinite().all())
    assert any("are not finite in float16; encoded again in float32" in note for note in prepared.notes)
    sampling = Sampling(num_inference_steps=2)
    made = draw(family, requests_for("free", [("a dog", "a dog")], range(2)), tmp_path / "drawn", about={},
                sampling=sampling, resolution_px=64, progress=lambda done, total: None)  # fmt: skip
    assert read_json(made)["faults"] == {}
    assert not any(constant_colour(file) for file in made.parent.glob("*.png"))
    assert fingerprints(family) == before


def test_a_picture_whose_latents_are_not_finite_in_any_format_is_named(random_base: Path, tmp_path: Path) -> None:
    from limner.families.load import load

    base = with_vae(random_base, tmp_path / "base", encoder__conv_in=float("inf"))
    family = load(str(base), dtype=torch.float32, device="cpu")
    spec = Pictures(class_noun="critter")
    with pytest.raises(UserError, match=r"\d.png: its latents are not finite, even in float32. Remove the"):
        prepare(check_pictures([PICTURES], spec, resolution_px=64), family, spec=spec, cache=tmp_path / "c", batch=1)


@pytest.fixture
def blind_base(random_base: Path, tmp_path: Path) -> Path:
    """A base whose every picture is black."""
    base = with_vae(random_base, tmp_path / "blind", decoder__conv_out=0.0)
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(str(file))
    tensors["decoder.conv_out.bias"] -= 2
    save_file(tensors, str(file), {"format": "pt"})
    return base


def test_black_class_pictures_stop_the_run_before_it_learns_blackness(
    run_limner: Callable[..., Result], blind_base: Path, own_cache: Path, tmp_path: Path
) -> None:
    words = ("train", PICTURES, "--recipe", "demo", "--run", tmp_path / "run", f"base={blind_base}", "steps=1")
    kept = set((own_cache / "class-pictures").glob("*"))
    code, _, err = run_limner(*words, "generation.num_inference_steps=2", "prior.count=2")
    assert code == 2
    assert re.search(r"class pictures: 2 of 2 pictures are constant \(black\) .* or give --class-pictures DIR", err)
    assert not (tmp_path / "run").exists()
    assert set((own_cache / "class-pictures").glob("*")) == kept


def test_black_previews_and_comparison_are_said_and_end_nothing(
    run_limner: Callable[..., Result], blind_base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("train", PICTURES, "--recipe", "demo", "--run", run, f"base={blind_base}", "prior.enabled=false",
             "steps=2", "preview.every_steps=1", "generation.num_inference_steps=2")  # fmt: skip
    code, _, err = run_limner(*words)
    assert code == 0, err
    assert re.search(r"warning: preview at step 1: 4 of 4 pictures are constant \(black\)", err), err
    assert [row["step"] for row in RunDir(run).read_log("warning")] == [1, 2]
    words = ("generate", run, "--prompt", "a dog", "--seeds", "1", "--out", tmp_path / "out")
    code, _, err = run_limner(*words, "generation.num_inference_steps=2")
    assert (code, "1 of 1 pictures are constant (black) (first: free-00-00.png)" in err) == (0, True)


def test_a_preview_that_cannot_be_drawn_never_ends_the_run(random_base: Path, tmp_path: Path) -> None:
    settings = {"base": str(random_base), "steps": 2, "prior.enabled": False, "optimizer.schedule": "constant",
                "generation.num_inference_steps": 2}  # fmt: skip
    run = limner.train(PICTURES, recipe="demo", run=tmp_path / "run", settings=settings)
    expected = limner.train(PICTURES, recipe="demo", run=tmp_path / "whole", settings={**settings, "steps": 4})
    run.previews.write_text("a file where the folder should be")
    watch = Said()
    limner.resume(run.path, settings={"steps": 4, "preview.every_steps": 1}, watch=watch)
    assert any("The training goes on, and the next preview is tried again." in line for line in watch.lines)
    ours, theirs = load_file(str(run.adapter)), load_file(str(expected.adapter))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_weights_that_do_not_move_are_told_early_and_refused_at_the_end(
    run_limner: Callable[..., Result], random_base: Path, tmp_path: Path
) -> None:
    """Steps of 1e-30 are lost in the rounding of float32."""
    words = ("train", PICTURES, "--recipe", "demo", "--run", tmp_path / "run", f"base={random_base}",
             "adapter.kind=full", "adapter.text_encoder=false", "prior.enabled=false", "steps=21",
             "learning_rate=1e-30", 'adapter.targets=["*.to_k.weight"]')  # fmt: skip
    code, _, err = run_limner(*words)
    assert code == 2
    assert "warning: unet does not learn: after 20 steps it is what it was (learning rate" in err
    assert err.splitlines()[-1].startswith("subject: unet was to be trained but did not change in 21 steps")
