"""Latent consistency through the whole program: it trains, resumes bit for bit, and draws in few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import limner
from limner import run as runs
from limner.errors import UserError
from limner.families.source import ASSETS
from limner.objectives import Consistency
from limner.run import check

PICTURES = ASSETS / "demo" / "critter"
FEW: dict[str, Any] = {
    "pictures.class_noun": "critter", "learning_rate": 1e-3, "objective.kind": "consistency", "objective.huber": 0.1,
    "prior.enabled": False, "checkpoint.every_steps": 1, "adapter.save_precision": "float32",
}  # fmt: skip


def weights(folder: Any) -> dict[str, torch.Tensor]:
    return load_file(folder.adapter)


@pytest.mark.parametrize(("base", "phases"), [("random_sd15", 1), ("random_sd15", 4), ("random_xl", 4)])
def test_interrupted_and_resumed_it_learns_the_same(
    base: str, phases: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = {**FEW, "base": str(request.getfixturevalue(base)), "objective.phases": phases}
    whole = limner.train(PICTURES, run=tmp_path / "whole", settings={**settings, "steps": 3})
    begun = limner.train(PICTURES, run=tmp_path / "begun", settings={**settings, "steps": 2})
    runs.resume(begun.path, settings={"steps": 3})
    first, second = weights(whole), weights(begun)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("unload", [False, True])
def test_sdxl_learns_with_its_sizes(random_xl: Path, tmp_path: Path, unload: bool) -> None:
    settings = {**FEW, "base": str(random_xl), "steps": 1, "unload": unload}
    folder = limner.train(PICTURES, run=tmp_path / "run", settings=settings)
    assert any(bool(tensor.any()) for name, tensor in weights(folder).items() if "lora_B" in name)


@pytest.mark.parametrize("scheduler", ["lcm", "tcd"])
def test_a_picture_is_the_same_in_any_batch(random_base: Path, tmp_path: Path, scheduler: str) -> None:
    asked = {"generation.scheduler": scheduler, "generation.num_inference_steps": 2, "generation.guidance_scale": 1.0}
    drawn = [
        limner.generate(str(random_base), ["a critter"], seeds=seeds, out=tmp_path / name,
                        settings={**asked, "generation.batch": batch})
        for name, seeds, batch in (("alone", [1], 1), ("first", [1, 2, 3], 3), ("again", [1, 2, 3], 3))
    ]  # fmt: skip
    first, again = (sorted(folder.glob("*.png")) for folder in drawn[1:])
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in again]
    assert len({f.read_bytes() for f in first}) == 3
    alone, same = (np.asarray(Image.open(folder / first[0].name), int) for folder in drawn[:2])
    assert np.abs(alone - same).max() <= 2  # another number of rows rounds otherwise; other noise would change it all


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"adapter.kind": "full", "adapter.targets": "all"},
            r"teaches the UNet to take fewer steps, .*adapter.kind=full",
        ),
        ({"adapter.text_encoder": True}, r"adapter.text_encoder=true\)\. Use adapter.kind=lora"),
        ({"prior.enabled": True}, r"no prior to preserve. Set prior.enabled=false"),
        ({"objective.snr_gamma": 1.0}, r"objective.snr_gamma has no meaning for objective.kind=consistency"),
        ({"objective.guidance_range": [4, 2]}, r"must be two numbers 1 <= from <= to"),
    ],
)
def test_what_does_not_go_together_is_refused(random_base: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(PICTURES, settings={**FEW, "base": str(random_base), **settings})


def test_the_refiner_cannot_jump(random_refiner: Path) -> None:
    with pytest.raises(UserError, match="which cannot begin a picture. Give the SDXL base"):
        check(PICTURES, settings={**FEW, "base": str(random_refiner)})


def test_guidance_may_be_one_number() -> None:
    assert Consistency(guidance_range=(4, 4)).guidance_range == (4, 4)
