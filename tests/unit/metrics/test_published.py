"""Encoders by folder and from the hub's cache: real classes of transformers with small random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import CLIPModel, Dinov2Model, ViTModel

from limner.errors import UserError
from limner.metrics.aesthetic import Aesthetic
from limner.metrics.encoder import PatchEncoder, TextImageEncoder
from limner.metrics.image_text import ImageText
from limner.metrics.lite0 import Lite0
from limner.metrics.published import fetch, load_encoder, load_quality, on_this_machine, require
from limner.metrics.vision import Vision
from tests.encoders import make_aesthetic, make_clip, make_dino, make_dinov2

HERE = "evaluation.encoders"
MAKE = {"dino-vits16": make_dino, "dinov2-small": make_dinov2, "clip-vit-base-patch32": make_clip}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: make(root / name) for name, make in MAKE.items()}


@pytest.fixture(params=[*MAKE, "lite0"])
def encoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> PatchEncoder:
    return Lite0() if request.param == "lite0" else load_encoder(str(folders[request.param]), HERE)


def test_the_name_of_an_encoder_is_the_last_part_of_its_folder(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        assert load_encoder(str(folder), HERE).name == name
    assert isinstance(load_encoder(str(folders["dino-vits16"]), HERE), Vision)
    assert isinstance(load_encoder(str(folders["clip-vit-base-patch32"]), HERE), TextImageEncoder)


def test_an_image_encoder_gives_the_cls_embedding_that_transformers_computes(folders: dict[str, Path]) -> None:
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    bytes_ = ((pixels + 1) * 127.5).round() / 255
    encode = Vision(folders["dino-vits16"], name="dino-vits16")
    model = ViTModel.from_pretrained(folders["dino-vits16"], add_pooling_layer=False).eval()
    with torch.inference_mode():
        tokens = model(pixel_values=(bytes_ - 0.5) / 0.5).last_hidden_state  # ViT's own mean and deviation
    assert torch.allclose(encode(pixels), tokens[:, 0], atol=1e-5)
    assert torch.allclose(encode.see(pixels)[1], tokens[:, 1:], atol=1e-5)


def test_dinov2_is_shown_the_middle_of_a_picture(folders: dict[str, Path]) -> None:
    encode = load_encoder(str(folders["dinov2-small"]), HERE)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    changed = pixels.clone()
    changed[..., :2, :] = -1
    assert torch.equal(encode(pixels), encode(changed))  # of 32 px the middle 28 are left
    model = Dinov2Model.from_pretrained(folders["dinov2-small"]).eval()
    with torch.inference_mode():
        inputs = encode.preprocessing.pixels(pixels)  # type: ignore[attr-defined]
        assert torch.allclose(model(pixel_values=inputs).pooler_output, encode(pixels), atol=1e-5)


def test_the_patches_of_clip_are_its_vision_towers_last_features(folders: dict[str, Path]) -> None:
    encode = ImageText(folders["clip-vit-base-patch32"], name="clip")
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    model = CLIPModel.from_pretrained(folders["clip-vit-base-patch32"]).eval()
    with torch.inference_mode():
        tokens = model.vision_model(pixel_values=encode.preprocessing.pixels(pixels)).last_hidden_state
    features, patches = encode.see(pixels)
    assert torch.allclose(patches, tokens[:, 1:], atol=1e-5)
    assert torch.equal(features, encode(pixels))


def test_patches_do_not_depend_on_the_batch_and_cover_the_mask_they_are_shown(encoder: PatchEncoder) -> None:
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    features, patches = encoder.see(pixels)
    assert torch.allclose(features, encoder(pixels), atol=1e-5)
    assert torch.allclose(patches, torch.cat([encoder.see(p[None])[1] for p in pixels]), atol=1e-3)
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    cells = encoder.cells(left)
    assert cells.shape == (1, patches.shape[1])
    side = int(patches.shape[1] ** 0.5)
    grid = cells.view(side, side)
    assert torch.allclose(grid[:, 0], torch.ones(side), atol=0.02)
    assert torch.allclose(grid[:, -1], torch.zeros(side), atol=0.02)
    assert float(grid.mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(encoder.cells(torch.ones(1, 64, 64)), torch.ones(1, side * side))


def test_weights_in_torchs_own_format_are_read_without_running_them(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = make_dino(tmp_path / "dino-vits16", safetensors=False)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    one, other = (load_encoder(str(f), HERE) for f in (folder, folders["dino-vits16"]))
    assert torch.equal(one(pixels), other(pixels))
    assert len(one.identity) == 16


def test_a_model_in_the_hubs_cache_is_found_by_name(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "facebook/dino-vits16"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert on_this_machine(name) is None
    kept = tmp_path / "models--facebook--dino-vits16"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folders["dino-vits16"], kept / "snapshots" / ("0" * 40))
    assert on_this_machine(name) == kept / "snapshots" / ("0" * 40)
    require(name, HERE)
    assert load_encoder(name, HERE).name == "dino-vits16"
    (kept / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    assert on_this_machine(name) is None


def test_a_missing_model_is_one_line_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for find in (require, fetch):
        with pytest.raises(UserError, match="evaluation.encoders: 'facebook/dinov2-small' is not on this") as error:
            find("facebook/dinov2-small", HERE)
        assert "hf download facebook/dinov2-small" in str(error.value.hint)
    with pytest.raises(UserError, match="lacks config.json, preprocessor_config.json or weights"):
        require(str(tmp_path), HERE)


def test_a_model_that_is_no_vision_transformer_is_refused(tmp_path: Path) -> None:
    (make_dino(tmp_path) / "config.json").write_text('{"model_type": "resnet", "hidden_sizes": [8], "depths": [1]}')
    with pytest.raises(UserError, match=r"ResNetModel, which is no vision transformer"):
        load_encoder(str(tmp_path), HERE)


def test_a_linear_head_rates_normalised_features(tmp_path: Path) -> None:
    folder = make_aesthetic(tmp_path / "aesthetic")
    judge = load_quality(str(folder), "evaluation.quality")
    assert isinstance(judge, Aesthetic)
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        features = judge.model(pixel_values=judge.preprocessing.pixels(pixels)).image_embeds
        by_hand = features / features.norm(dim=1, keepdim=True) @ judge.model.predictor.weight.T + 5
    assert torch.allclose(judge(pixels), by_hand, atol=1e-5)


def test_a_tower_without_a_head_rates_nothing(tmp_path: Path) -> None:
    folder = make_aesthetic(tmp_path / "tower", head=False)
    with pytest.raises(UserError, match=r"is no model of image quality \(it lacks predictor.bias\)"):
        load_quality(str(folder), "evaluation.quality")
