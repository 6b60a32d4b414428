"""Adapters in a base and out of it again, on every family: what is written is base and change, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from limner import merging
from limner.adapters.strength import Strength
from limner.combining import extract, merge_adapters, resize
from limner.errors import UserError
from limner.export.combine import change_of, layers_of
from limner.export.lora_files import read_any_lora
from limner.families.family import Family
from limner.families.load import load, weights_of
from limner.watch import Watch
from tests.fresh import fresh
from tests.lora_files import write_random_lora


class Told(Watch):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def base(random_base: Path) -> Family:
    return fresh(random_base)


@pytest.fixture(scope="module")
def loras(base: Family, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [
        write_random_lora(base, folder / "a.safetensors", seed=1, token="sks"),
        write_random_lora(base, folder / "b.safetensors", seed=2, token="ohwx", rank=3, targets="all"),
    ]


@pytest.fixture(scope="module")
def merged(base: Family, loras: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Merge two LoRAs into the base in float32; return the folder and what was said."""
    out, told = tmp_path_factory.mktemp("merged") / "model", Told()
    settings = {"precision": "float32", "shard": 0.0002, "device": "cpu"}
    merging.merge(base.name, pairs(loras), out, settings=settings, watch=told)
    return out, told.lines


def read_lora(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    lora = read_any_lora(path)
    return lora.state_dict(), lora.about


def pairs(loras: list[Path]) -> list[tuple[Path, Strength | float]]:
    return [(loras[0], 0.8), (loras[1], Strength(1.0, {"text": 0.5, "up": -0.5}))]


def wanted_changes(loras: list[Path]) -> dict[str, Tensor]:
    """Return what two LoRAs add to each layer, by the definition."""
    found: dict[str, Tensor] = {}
    for path, strength in pairs(loras):
        state, _ = read_lora(path)
        for layer in layers_of(state):
            A, B = state[f"{layer}.lora_A"], state[f"{layer}.lora_B"]
            scale = strength.of(layer) if isinstance(strength, Strength) else strength
            delta = (B @ A.flatten(1)).reshape(B.shape[0], *A.shape[1:]) * scale
            found[layer] = found.get(layer, torch.zeros(())) + delta
    return found


def test_merged_is_base_and_change_and_draws_as_on_the_fly(base: Family, loras: list[Path], merged) -> None:
    out, lines = merged
    again, changes = load(str(out), dtype=torch.float32, device="cpu"), wanted_changes(loras)
    for root, module in again.parts.items():
        own = dict(base.parts[root].named_parameters())
        for name, weight in module.named_parameters():
            change = changes.pop(f"{root}.{name.removesuffix('.weight')}", torch.zeros(()))
            torch.testing.assert_close(weight, own[name] + change, rtol=1e-6, atol=1e-6)
    assert not changes
    assert lines[-1].startswith("merged float32 model differs from the adapters on the fly by mean 0.0")
    about = json.loads((out / "limner.json").read_text())
    assert about["merged"] == [["a.safetensors", 0.8], ["b.safetensors", "text=0.5,up=-0.5"]]
    assert about["token"] == "sks, ohwx"


def test_a_sharded_folder_is_read_by_diffusers(merged) -> None:
    out, _ = merged
    assert len(list((out / "unet").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    theirs = UNet2DConditionModel.from_pretrained(out / "unet").state_dict()
    ours = load(str(out), dtype=torch.float32, device="cpu").unet.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_single_file_is_cast_once(base: Family, loras: list[Path], merged, precision: str, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    settings = {"precision": precision, "device": "cpu"}
    merging.merge(base.name, pairs(loras), out, to="single-file", settings=settings)
    exact = load(str(merged[0]), dtype=torch.float32, device="cpu")
    dtype = getattr(torch, precision)
    for part, module in exact.parts.items():
        own = weights_of(out, base.kind, part, module, dtype=torch.float32, device="cpu")
        assert all(torch.equal(own[name], weight.to(dtype).float()) for name, weight in module.named_parameters())


def test_a_model_that_draws_otherwise_is_not_written(
    base: Family, loras: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "LIMIT", -1.0)
    with pytest.raises(UserError, match=r"model differs from the adapters on the fly by mean .*/255 \(limit -1\)"):
        merging.merge(base.name, pairs(loras), tmp_path / "model", settings={"device": "cpu"})
    assert not list(tmp_path.iterdir())


def test_a_merged_change_is_extracted_again(base: Family, loras: list[Path], merged, tmp_path: Path) -> None:
    told, out = Told(), tmp_path / "out.safetensors"
    _, kept = extract(str(merged[0]), base.name, out, settings={"energy": 1.0, "device": "cpu"}, watch=told)
    state, about = read_lora(out)
    wanted = wanted_changes(loras)
    assert set(layers_of(state)) == wanted.keys() == kept.keys()
    for layer, change in wanted.items():
        torch.testing.assert_close(change_of(state, layer), change, rtol=1e-4, atol=1e-4)
    assert about["token"] == "sks, ohwx"
    assert any(line.startswith(f"{len(wanted)} modules differ; ranks ") for line in told.lines)
    differs = float(told.lines[-1].partition("by mean ")[2].partition("/")[0])
    assert differs < 0.2
    smaller = tmp_path / "small.safetensors"
    told = Told()
    resize(out, smaller, settings={"rank": 1}, watch=told)
    assert told.lines[0].startswith("from rank 5: rank 1 keeps ")
    assert {t.shape[0] for name, t in read_lora(smaller)[0].items() if name.endswith(".lora_A")} == {1}


def test_equal_models_have_nothing_to_extract(base: Family, loras: list[Path], tmp_path: Path) -> None:
    """Rounding to half precision is no training."""
    half = tmp_path / "half"
    merging.merge(base.name, [(loras[0], 0.0)], half, settings={"precision": "bfloat16", "device": "cpu"})
    with pytest.raises(UserError, match="extract: 0 modules differ between base and tuned; nothing to extract"):
        extract(str(half), base.name, tmp_path / "x.safetensors", settings={"rank": 4, "device": "cpu"})
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_two_loras_as_one_are_their_sum(base: Family, loras: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "both.safetensors"
    merge_adapters(pairs(loras), out)
    state, about = read_lora(out)
    for layer, change in wanted_changes(loras).items():
        torch.testing.assert_close(change_of(state, layer), change, rtol=1e-5, atol=1e-5)
    assert about["token"] == "sks, ohwx"
    assert about["family"] == base.kind
    told = Told()
    merge_adapters(pairs(loras), tmp_path / "svd.safetensors", settings={"how": "svd", "rank": 1}, watch=told)
    assert told.lines[0].startswith("rank 1 keeps ")
    with pytest.raises(UserError, match=r"how=sum: the LoRAs have ranks 2 and 3 at .* Use how=concat"):
        merge_adapters(pairs(loras), tmp_path / "sum.safetensors", settings={"how": "sum"})
