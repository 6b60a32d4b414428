"""Runs on a base that is stored in fewer bits: resumed bit for bit, written down, and compared on the base as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limner import run
from limner.drawing import draw_comparison
from limner.errors import UserError
from limner.families.load import load
from limner.families.source import ASSETS
from limner.recipe import load_recipe
from limner.rundir import RunDir, read_json
from limner.watch import Watch

CRITTER = ASSETS / "demo" / "critter"


class Listening(Watch):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def train(base: Path, folder: Path, watch: Watch | None = None, **more: Any) -> RunDir:
    settings = {"base": str(base), "steps": 4, "batch": 2, "pictures.class_noun": "critter", "unload": True,
                "checkpoint.every_steps": 2, "preview.every_steps": 2, "preview.images": 1, "adapter.targets": "all",
                "generation.num_inference_steps": 2, "optimizer.warmup_steps": 0, "adapter.text_encoder": True,
                "evaluation.prompts": ["a photo of {subject}"], "evaluation.images_per_prompt": 1,
                "evaluation.class_prompts": [], "evaluation.other_prompts": [],
                "base_storage": "nf4", **more}  # fmt: skip
    return run.train(CRITTER, recipe="lora", settings=settings, run=folder, watch=watch)


def test_it_is_resumed_bit_for_bit_and_compared_on_the_base_as_it_is(random_base: Path, tmp_path: Path) -> None:
    heard = Listening()
    whole, broken = train(random_base, tmp_path / "whole", heard), train(random_base, tmp_path / "broken", steps=2)
    run.resume(broken.path, settings={"steps": 4})
    previews = [folder.previews / "step-000004" for folder in (whole, broken)]
    files = [sorted(preview.rglob("*.png")) for preview in previews]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]] != []
    assert whole.adapter.read_bytes() == broken.adapter.read_bytes()
    assert any("the frozen base is stored in nf4" in line for line in heard.said)
    with pytest.raises(UserError, match="its checkpoint was made with base_storage=nf4, and the recipe says int8"):
        run.resume(whole.path, settings={"steps": 5, "base_storage": "int8"})

    draw_comparison(whole, load_recipe(whole.recipe), heard)
    manifests = {arm: read_json(whole.images / arm / "manifest.json") for arm in ("base", "tuned")}
    identity = load(str(random_base), dtype=torch.float32, device="cpu").identity
    assert [manifest["identity"] for manifest in manifests.values()] == [identity, identity]
    assert read_json(whole.provenance)["base"]["identity"]["unet"] != identity["unet"]
    assert (manifests["tuned"]["base_storage"], "base_storage" in manifests["base"]) == ("nf4", False)
    assert any("drawn, on both sides, with the base as it is" in line for line in heard.said)


def test_layers_are_brought_to_a_gpu_and_to_nothing_else(random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"offload=true: brings .* to a GPU, and this is for cpu\. Leave it out"):
        train(random_base, tmp_path / "run", offload=True, device="cpu")
    assert not (tmp_path / "run").exists()
