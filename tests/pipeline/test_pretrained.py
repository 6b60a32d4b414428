"""The bases that a command makes on the user's machine: found by their names, and the demo on one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.export.single_file import write_single_file
from limner.families.load import load
from limner.families.recognise import recognise
from limner.families.source import PRETRAINED, made_here
from limner.pictures.cache import prune_cache
from tests.pipeline.conftest import Result

FEW = [
    "steps=2", "batch=1", "prior.count=2", "prior.enabled=false", "generation.num_inference_steps=1",
    'evaluation.prompts=["a photo of a {subject}"]', 'evaluation.class_prompts=["a {class_noun}"]',
    'evaluation.other_prompts=["a plant"]',
]  # fmt: skip


@pytest.fixture
def made(random_xl: Path, random_refiner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the random models where the command puts the pretrained ones; return the cache."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    shutil.copytree(random_xl, made_here("tiny-xl"))
    shutil.copytree(random_refiner, made_here("tiny-xl-refiner"))
    return tmp_path / "cache"


def test_they_are_found_by_their_names(made: Path) -> None:
    found = {name: recognise(name) for name in PRETRAINED}
    assert {name: base.family for name, base in found.items()} == {"tiny-xl": "sdxl", "tiny-xl-refiner": "sdxl-refiner"}
    assert all(made in base.path.parents for base in found.values())


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_checkpoint_file_of_one_is_read_by_its_configuration(name: str, made: Path, tmp_path: Path) -> None:
    family = load(name, dtype=torch.float32, device="cpu")
    file = write_single_file(family, tmp_path / "model.safetensors", dtype=torch.float32, about={})
    read = load(str(file), dtype=torch.float32, device="cpu")
    assert (read.kind, read.identity) == (family.kind, family.identity)


def test_pruning_the_cache_leaves_them(made: Path) -> None:
    (made / "moments").mkdir()
    (made / "moments" / "a.safetensors").write_bytes(b"12345")
    assert prune_cache(made, keep_bytes=0) == (1, 5)
    assert recognise("tiny-xl").native_resolution_px == 64


def test_the_demo_runs_on_one(made: Path, tmp_path: Path, run_limner: Callable[..., Result]) -> None:
    code, out, err = run_limner("demo", "--run", tmp_path / "demo", "base=tiny-xl", *FEW)
    assert code == 0, err
    page = Path(out.splitlines()[-1].split()[-1])
    assert "tiny-xl" in page.read_text(encoding="utf-8")
    for arm in ("lora", "dreambooth", "dreambooth-lora"):
        base = json.loads((tmp_path / "demo" / arm / "images" / "base" / "manifest.json").read_text())["base"]
        assert base == "tiny-xl"
