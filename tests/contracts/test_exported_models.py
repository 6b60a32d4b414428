"""`export RUN|BASE --to diffusers|single-file`: every layout, number format and size of file, read by two programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from limner import sharing
from limner.errors import UserError
from limner.families.load import load
from limner.recipe import load_recipe, save_recipe

FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALL = [("diffusers", None), ("diffusers", 1e-4), ("single-file", None)]


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize(("to", "shard"), ALL)
def test_a_base_is_read_by_diffusers_and_by_limner(
    to: str, shard: float | None, precision: str, random_base: Path, tmp_path: Path
) -> None:
    dtype, out = FORMATS[precision], tmp_path / f"model{'.safetensors' if to == 'single-file' else ''}"
    settings = {"precision": precision} | ({"shard": shard} if shard else {})
    assert sharing.export(str(random_base), to=to, out=out, settings=settings) == [out]
    pipe = DiffusionPipeline.from_pretrained(random_base)
    wanted = {part: getattr(pipe, part).state_dict() for part in pipe.components
              if isinstance(getattr(pipe, part), torch.nn.Module)}  # fmt: skip
    read = type(pipe).from_single_file(str(out), config=str(random_base)) if to == "single-file" else (
        DiffusionPipeline.from_pretrained(out)
    )  # fmt: skip
    for part, weights in wanted.items():
        found = getattr(read, part).state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name].to(dtype), weight.to(dtype)) for name, weight in weights.items()), part
    files = sorted(path.name for path in (out / "unet").glob("*")) if to == "diffusers" else []
    assert ("diffusion_pytorch_model.safetensors.index.json" in files) is bool(shard)
    assert len(files) == 2 or shard or to == "single-file"
    if shard:
        index = json.loads((out / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
        for name in set(index["weight_map"].values()):
            tensors = load_file(out / "unet" / name)
            assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard * 1e9
    if to == "diffusers":  # a single file of so small a model needs its configuration
        own = load(str(out), dtype=torch.float32, device="cpu")
        for part, module in own.parts.items():
            for name, weight in module.named_parameters():
                assert torch.equal(weight, wanted[part][name].to(dtype).float()), f"{part}.{name}"


def test_precision_is_the_sources_and_a_runs_model_is_its_folders(random_base: Path, tmp_path: Path) -> None:
    half, again, run = tmp_path / "half", tmp_path / "again", tmp_path / "run"
    sharing.export(str(random_base), to="diffusers", out=half, settings={"precision": "bfloat16"})
    sharing.export(str(half), to="diffusers", out=again)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (again / file).read_bytes() == (half / file).read_bytes()
    run.mkdir()
    save_recipe(
        load_recipe("dreambooth", {"base": str(random_base), "pictures.class_noun": "dog"}), run / "recipe.toml"
    )
    half.rename(run / "model")
    (made,) = sharing.export(run, to="single-file")
    assert made == run / "model-single-file.safetensors"
    assert {str(tensor.dtype) for tensor in load_file(made).values() if tensor.numel()} == {"torch.bfloat16"}
    (made,) = sharing.export(run, to="diffusers", settings={"shard": 1e-4})
    assert len(list((made / "unet").glob("*.safetensors"))) > 1


def test_what_cannot_be_written_is_one_line(random_base: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for message, to, out, settings in (
        ("is a base, and no place for its copy was named. Name one: --out", "diffusers", None, {}),
        ("there is there already", "single-file", there, {}),
        ("shard is no setting of --to single-file", "single-file", tmp_path / "x", {"shard": 1}),
        ("shard = 0 is not allowed", "diffusers", tmp_path / "x", {"shard": 0}),
        ("holds a model, not for --to kohya. Use --to diffusers or single-file", "kohya", tmp_path / "x", {}),
    ):
        with pytest.raises(UserError, match=message):
            sharing.export(str(random_base), to=to, out=out, settings=settings)
    with pytest.raises(UserError, match="nowhere: there is no such run or file"):
        sharing.export(tmp_path / "nowhere", to="diffusers")
    assert not (tmp_path / "x").exists()
