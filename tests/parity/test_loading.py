"""Loading: bit for bit what diffusers and transformers load from the same files in the same dtype."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limner.errors import UserError
from limner.export.single_file import write_single_file
from limner.families.load import load
from limner.families.source import ASSETS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STEM = "diffusion_pytorch_model.safetensors"


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def assert_loads_alike(folder: Path, dtype: torch.dtype, **options: Any) -> None:
    from diffusers import StableDiffusionPipeline

    family = load(str(folder), dtype=dtype, device="cpu")
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), dtype=dtype, **options)
    assert_same(family.unet, pipe.unet)
    assert_same(family.vae, pipe.vae)
    assert_same(family.modules["text_encoder"], pipe.text_encoder)
    torch.testing.assert_close(family.schedule.alphas_cumprod, pipe.scheduler.alphas_cumprod)


@pytest.fixture
def folder(random_base: Path, tmp_path: Path) -> Path:
    """Return a copy of the random base that a test may change."""
    return Path(shutil.copytree(random_base, tmp_path / "base"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder(random_base: Path, dtype: torch.dtype) -> None:
    assert_loads_alike(random_base, dtype)


def test_text_comes_out_alike(random_base: Path) -> None:
    from diffusers import StableDiffusionPipeline

    family = load(str(random_base), dtype=torch.float32, device="cpu")
    pipe = StableDiffusionPipeline.from_pretrained(str(random_base))
    theirs = pipe.encode_prompt(["a red critter"], "cpu", 1, do_classifier_free_guidance=False)[0]
    assert torch.equal(family.encode_text(["a red critter"]).hidden, theirs)


def test_a_folder_of_float16_variants(folder: Path) -> None:
    for file in [folder / "unet" / STEM, folder / "vae" / STEM, folder / "text_encoder/model.safetensors"]:
        halved = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halved, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
        file.unlink()
    assert_loads_alike(folder, torch.float32, variant="fp16")


def test_a_folder_of_shards(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="50KB")
    assert len(list((folder / "unet").glob("*-of-*"))) > 2
    assert_loads_alike(folder, torch.bfloat16)


def test_a_folder_of_pickled_weights(folder: Path) -> None:
    for file in [folder / "unet" / STEM, folder / "vae" / STEM, folder / "text_encoder/model.safetensors"]:
        stem = "pytorch_model" if file.parent.name == "text_encoder" else "diffusion_pytorch_model"
        torch.save({name: tensor.clone() for name, tensor in load_file(file).items()}, file.parent / f"{stem}.bin")
        file.unlink()
    assert_loads_alike(folder, torch.float32, use_safetensors=False)


def test_a_folder_without_a_tokenizer_is_named(folder: Path) -> None:
    """Transformers makes an empty tokenizer where its files are missing, and every prompt would be the same."""
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load(str(folder), dtype=torch.float32, device="cpu")


def test_names_of_the_published_files(folder: Path) -> None:
    """SD 1.5's own VAE has the attention's old names, and its text encoder a level more and position ids."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = load_file(folder / "vae" / STEM)
    for new, name in old.items():
        vae = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in vae.items()}
    assert any(".query." in key for key in vae)
    save_file(vae, folder / "vae" / STEM, {"format": "pt"})
    text = load_file(folder / "text_encoder/model.safetensors")
    text = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in text.items()}
    text["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(text, folder / "text_encoder/model.safetensors", {"format": "pt"})
    assert_loads_alike(folder, torch.float32)


@pytest.mark.parametrize("name", ["random_sd15", "random_xl"])
def test_a_text_projection_in_the_file_stays_where_the_module_has_one(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SD 1.x's module has none, and files of CLIP may have one; SDXL's second encoder needs its own."""
    folder: Path = shutil.copytree(request.getfixturevalue(name), tmp_path / "base")
    file = folder / "text_encoder/model.safetensors"
    weights = load_file(file)
    width = weights["final_layer_norm.weight" if "final_layer_norm.weight" in weights
                    else "text_model.final_layer_norm.weight"].shape[0]  # fmt: skip
    save_file(weights | {"text_projection.weight": torch.ones(width, width)}, file, {"format": "pt"})
    family, plain = (load(str(f), dtype=torch.float32, device="cpu") for f in (folder, request.getfixturevalue(name)))
    assert family.identity == plain.identity
    encoders = list(family.modules)[1:]
    assert [f"{e}.text_projection.weight" for e in encoders if hasattr(family.modules[e], "text_projection")] == (
        ["text_encoder_2.text_projection.weight"] if name == "random_xl" else []
    )
    if name == "random_xl":
        own = load_file(folder / "text_encoder_2/model.safetensors")["text_projection.weight"]
        assert torch.equal(family.modules["text_encoder_2"].text_projection.weight, own)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the embedded base as one file in the original layout."""
    file = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    family = load("tiny", dtype=torch.float32, device="cpu")
    return write_single_file(family, file, dtype=torch.float16, about={"title": "tiny"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_file(checkpoint: Path, dtype: torch.dtype) -> None:
    from diffusers import StableDiffusionPipeline

    family = load(str(checkpoint), dtype=dtype, device="cpu")
    pipe = StableDiffusionPipeline.from_single_file(str(checkpoint), config=str(ASSETS / "tiny"), dtype=dtype)
    assert_same(family.unet, pipe.unet)
    assert_same(family.vae, pipe.vae)
    assert_same(family.modules["text_encoder"], pipe.text_encoder)
    assert family.schedule.prediction_type == load("tiny", dtype=dtype, device="cpu").schedule.prediction_type


def test_folder_and_single_file_and_pickle_are_one_base(checkpoint: Path, tmp_path: Path) -> None:
    embedded = load("tiny", dtype=torch.float16, device="cpu")
    assert load(str(checkpoint), dtype=torch.float16, device="cpu").identity == embedded.identity
    torch.save(
        {"state_dict": {name: tensor.clone() for name, tensor in load_file(checkpoint).items()}}, tmp_path / "tiny.ckpt"
    )
    assert load(str(tmp_path / "tiny.ckpt"), dtype=torch.float16, device="cpu").identity == embedded.identity


@pytest.mark.parametrize(
    ("left_out", "line"),
    [
        ("first_stage_model.", "holds no vae"),
        ("model.diffusion_model.out.2.bias", r"unet: does not fit .* 1 weights are missing \(first: conv_out.bias\)"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.0.bias", "down_blocks.0.resnets.0.norm1.bias"),
    ],
)
def test_an_incomplete_single_file_names_what_it_lacks(
    checkpoint: Path, tmp_path: Path, left_out: str, line: str
) -> None:
    kept = {name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith(left_out)}
    save_file(kept, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=line):
        load(str(tmp_path / "cut.safetensors"), dtype=torch.float32, device="cpu")


def test_markers_of_v_prediction_and_zero_terminal_snr_reach_the_schedule(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, tmp_path / "marked.safetensors")
    family = load(str(tmp_path / "marked.safetensors"), dtype=torch.float32, device="cpu")
    assert family.schedule.prediction_type == "v_prediction"
    assert float(family.schedule.alphas_cumprod[-1]) == 0
    assert family.scheduler_config["rescale_betas_zero_snr"]
