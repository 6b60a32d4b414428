"""What a file or folder is, said in one line and at once; real shapes, no weights."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from limner.errors import UserError
from limner.families.load import load, native_resolution
from limner.families.recognise import recognise
from limner.families.source import ASSETS
from tests.unit.families import headers

SECONDS = 2.0
LORA_HINT = "Give the model that it was made for as the base, and the LoRA with --adapter."
EMBEDDING_HINT = "Give the model that it was made for as the base."
PART_HINT = "Give the whole model: a diffusers folder or a single .safetensors file."
VAE_LINE = f"is a VAE alone (SD 1.x, SD 2.x and SDXL share its shape), not a base. {PART_HINT}"


def refused(path: Path) -> str:
    """Return the line with which a base is refused by `load`, without its name; it must come in two seconds."""
    begun = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load(str(path), dtype=torch.float32, device="cpu")
    assert time.perf_counter() - begun < SECONDS
    assert str(caught.value).startswith(f"base={str(path)!r}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"base={str(path)!r}: ")


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        (headers.SD2, "is SD 2.x (cross-attention 1024), which is not supported. Use an SD 1.5 or SDXL model."),
        (headers.kohya_lora(768), f"is a LoRA for SD 1.x (cross-attention 768), not a base. {LORA_HINT}"),
        (headers.kohya_lora(2048), f"is a LoRA for SDXL (cross-attention 2048), not a base. {LORA_HINT}"),
        (headers.diffusers_lora(768), f"is a LoRA for SD 1.x (cross-attention 768), not a base. {LORA_HINT}"),
        (headers.diffusers_lora(2048), f"is a LoRA for SDXL (cross-attention 2048), not a base. {LORA_HINT}"),
        (
            {"emb_params": (4, 768)},
            f"is a textual inversion embedding for SD 1.x (4 vectors of width 768), not a base. {EMBEDDING_HINT}",
        ),
        (
            {"<my-dog>": (768,)},
            f"is a textual inversion embedding for SD 1.x (1 vector of width 768), not a base. {EMBEDDING_HINT}",
        ),
        (
            {"clip_g": (2, 1280), "clip_l": (2, 768)},
            "is a textual inversion embedding for SDXL (2 vectors of width 1280 and 768), not a base. "
            f"{EMBEDDING_HINT}",
        ),
        (headers.vae(), VAE_LINE),
        (headers.vae("first_stage_model."), VAE_LINE),
        ({"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.x": (1,)}, f"is a UNet alone, not a base. {PART_HINT}"),
        (
            {"text_model.embeddings.token_embedding.weight": (49408, 768)},
            f"is a text encoder alone, not a base. {PART_HINT}",
        ),
        (
            {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64)},
            "is a model of another family (flux-schnell), not a base. Give an SD 1.5 or SDXL model.",
        ),
        ({"what": (3, 3)}, "is no model that Limner knows (its first tensor: what). Give an SD 1.5 or SDXL model."),
    ],
)
def test_what_is_no_base_is_called_by_its_name(tmp_path: Path, shapes: headers.SHAPES, line: str) -> None:
    from diffusers.loaders import single_file_utils  # noqa: F401 (not part of the two seconds)

    assert refused(headers.sparse(tmp_path / "given.safetensors", shapes)) == line


@pytest.mark.parametrize(
    ("shapes", "family", "width", "resolution_px"),
    [
        (headers.SD15, "sd15", 768, 512),
        (headers.SD2, "sd2", 1024, 768),
        (headers.SDXL, "sdxl", 2048, 1024),
        (headers.REFINER, "sdxl-refiner", 1280, 1024),
    ],
)
def test_a_single_file_is_recognised_by_names_and_shapes(
    tmp_path: Path, shapes: headers.SHAPES, family: str, width: int, resolution_px: int
) -> None:
    begun = time.perf_counter()
    found = recognise(str(headers.sparse(tmp_path / "model.safetensors", shapes)))
    assert time.perf_counter() - begun < SECONDS
    assert (found.family, found.cross_attention, found.native_resolution_px) == (family, width, resolution_px)
    assert not found.inpainting
    assert "epsilon (assumed: nothing says it)" in found.line
    assert (found.prediction_type, found.prediction_type_from) == ("epsilon", None)


def test_v_prediction_and_zero_terminal_snr_are_read_from_marker_keys(tmp_path: Path) -> None:
    file = headers.sparse(tmp_path / "model.safetensors", {**headers.SD15, "v_pred": (), "ztsnr": ()})
    found = recognise(str(file))
    assert (found.prediction_type, found.prediction_type_from) == ("v_prediction", "its key v_pred")
    assert found.zero_terminal_snr
    assert found.line == f"base {file}: SD 1.x, v_prediction (its key v_pred), 512 px"


def test_v_prediction_is_read_from_the_modelspec(tmp_path: Path) -> None:
    file = headers.sparse(tmp_path / "m.safetensors", headers.SD15, {"modelspec.prediction_type": "v"})
    assert recognise(str(file)).prediction_type == "v_prediction"


def test_inpainting_is_read_from_the_first_layer(tmp_path: Path) -> None:
    shapes = {**headers.SD15, f"{headers.UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}
    file = headers.sparse(tmp_path / "model.safetensors", shapes)
    assert recognise(str(file)).inpainting
    assert refused(file) == (
        "is an inpainting model (its UNet takes 9 channels). Use the text-to-image model that it was made from."
    )


def test_a_single_file_of_another_width_has_no_configuration(tmp_path: Path) -> None:
    shapes = {**headers.SD15, f"{headers.UNET}input_blocks.0.0.weight": (128, 4, 3, 3)}
    with pytest.raises(UserError, match="is 128 wide with cross-attention 768; SD 1.5's is 320 and 768"):
        recognise(str(headers.sparse(tmp_path / "model.safetensors", shapes)))


def test_a_folder_is_recognised_by_its_configurations(random_base: Path) -> None:
    found = recognise(str(random_base))
    assert (found.family, found.cross_attention, found.native_resolution_px) == ("sd15", 32, 64)
    assert (found.prediction_type, found.prediction_type_from) == ("v_prediction", "scheduler_config.json")


def test_sd15s_own_configurations_are_sd15() -> None:
    found = recognise(str(ASSETS / "sd15"))
    assert (found.family, found.cross_attention, found.native_resolution_px) == ("sd15", 768, 512)


@pytest.mark.parametrize(
    ("index", "line"),
    [
        (
            {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
            "is Flux, which is not supported. Use an SD 1.5 or SDXL model.",
        ),
    ],
)
def test_folders_of_other_families_are_called_by_their_names(
    random_base: Path, tmp_path: Path, index: dict[str, object], line: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(random_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model_index.json").write_text(json.dumps(index))
    assert refused(folder) == line


def test_folders_that_are_no_base(tmp_path: Path, random_base: Path) -> None:
    assert refused(tmp_path).startswith("is no model folder (model_index.json is missing).")
    (tmp_path / "recipe.toml").touch()
    assert refused(tmp_path) == "is a run folder, not a base. Give the base that the run was made with."
    loras = tmp_path / "loras"
    loras.mkdir()
    headers.sparse(loras / "dog.safetensors", headers.kohya_lora(768))
    assert refused(loras) == f"is a LoRA for SD 1.x (cross-attention 768), not a base. {LORA_HINT}"
    assert refused(random_base / "vae") == VAE_LINE


def test_a_folder_that_mixes_two_models_is_refused(random_base: Path, tmp_path: Path) -> None:
    shutil.copytree(random_base, tmp_path / "mixed")
    config = tmp_path / "mixed/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [24, 32]}))
    assert "unet/diffusion_pytorch_model.safetensors does not fit unet/config.json" in refused(tmp_path / "mixed")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match=r"cut.safetensors: is not a readable .safetensors file"):
        recognise(str(tmp_path / "cut.safetensors"))
    file = tmp_path / "x" / "model_index.json"
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(UserError, match=r"model_index.json: is not readable JSON \(line 1\)"):
        recognise(str(file.parent))


def test_the_resolution_of_a_wrong_base_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is SD 2.x"):
        native_resolution(str(headers.sparse(tmp_path / "x.safetensors", headers.SD2)))
