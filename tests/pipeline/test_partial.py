"""`--allow-partial`: what fits of a file acts, what does not is counted and named; without it, the file is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from limner.families.load import load
from tests.lora_layouts import as_written_by, changes, save
from tests.pipeline.conftest import Result

Limner = Callable[..., Result]


@pytest.fixture
def files(random_base: Path, tmp_path: Path) -> dict[str, Path]:
    """Write a LoRA, and the same with a half pair, with a key of no LoRA's, and with layers that the base has not."""
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    whole = as_written_by("kohya", changes(family, "LoRA", every=4))
    further = {
        "half": {"lora_unet_conv_out.lora_down.weight": np.ones((2, 16, 3, 3), np.float32)},
        "strange": {"transformer.blocks.7.scale": np.ones(3, np.float32)},
        "elsewhere": {
            f"lora_unet_down_blocks_3_resnets_1_conv1.{end}": np.ones(shape, np.float32)
            for end, shape in (("lora_down.weight", (2, 8, 3, 3)), ("lora_up.weight", (8, 2, 1, 1)), ("alpha", ()))
        },
    }
    found = {"whole": save(whole, tmp_path / "whole.safetensors")}
    for name, more in further.items():
        found[name] = save(whole | more, tmp_path / f"{name}.safetensors")
    found["nothing"] = save(further["elsewhere"], tmp_path / "nothing.safetensors")
    return found


def draw(run_limner: Limner, base: Path, file: Path, out: Path, *more: str) -> tuple[int, str, np.ndarray | None]:
    steps = ("generation.num_inference_steps=2", "resolution=64", "--seeds", "1")
    words = ("generate", base, *steps, "--prompt", "a dog", "--adapter", file, "--out", out, *more)
    code, _, err = run_limner(*words)
    return code, err, np.asarray(Image.open(next(out.rglob("*.png")))) if code == 0 else None


@pytest.mark.parametrize(("name", "keys", "first"), [
    ("half", 1, "lora_unet_conv_out.lora_down.weight"), ("strange", 1, "transformer.blocks.7.scale"),
    ("elsewhere", 3, "lora_unet_down_blocks_3_resnets_1_conv1.alpha"),
])  # fmt: skip
def test_half_a_file_is_an_error_or_acts_as_its_fitting_half(
    name: str, keys: int, first: str, files: dict[str, Path], random_base: Path, run_limner: Limner, tmp_path: Path
) -> None:
    code, err, _ = draw(run_limner, random_base, files[name], tmp_path / "refused")
    assert code == 2, err
    assert "take what fits with --allow-partial" in err
    assert not (tmp_path / "refused").exists()
    code, err, part = draw(run_limner, random_base, files[name], tmp_path / "part", "--allow-partial")
    assert code == 0, err
    total = len(load_file(files["whole"])) + keys
    assert f"{name}.safetensors: {keys} of {total} keys do not fit and are left out (--allow-partial):\n" in err
    assert f"\n  {first}\n" in err
    _, err, whole = draw(run_limner, random_base, files["whole"], tmp_path / "whole", "--allow-partial")
    assert "left out" not in err
    assert part is not None
    assert np.array_equal(part, whole)
    code, err, _ = draw(run_limner, random_base, files["nothing"], tmp_path / "nothing", "--allow-partial")
    assert code == 2
    assert "0 of 1 layers are in it" in err


def test_export_and_merge_take_what_fits_too(
    files: dict[str, Path], random_base: Path, run_limner: Limner, tmp_path: Path
) -> None:
    for name in ("half", "strange"):
        words = ("export", files[name], "--to", "diffusers", "--family", "sd15", "--out", tmp_path / "x.safetensors")
        code, _, err = run_limner(*words)
        assert code == 2
        assert "--allow-partial" in err
        code, _, err = run_limner(*words, "--allow-partial")
        assert code == 0, err
        assert f"{name}.safetensors: 1 of" in err
        found = load_file(tmp_path / "x.safetensors")
        run_limner("export", files["whole"], *words[2:])
        wanted = load_file(tmp_path / "x.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
        assert found.keys() == wanted.keys()
    words = ("export", files["elsewhere"], "--to", "peft", f"base={random_base}", "--out", tmp_path / "peft")
    assert run_limner(*words)[0] == 2
    code, _, err = run_limner(*words, "--allow-partial")
    assert code == 0, err
    assert "elsewhere.safetensors: 3 of" in err
    words = ("merge", random_base, files["elsewhere"], "precision=float32", "--out")
    code, _, err = run_limner(*words, tmp_path / "refused")
    assert code == 2, err
    code, _, err = run_limner(*words, tmp_path / "part", "--allow-partial")
    assert code == 0, err
    assert "elsewhere.safetensors: 3 of" in err
    assert run_limner("merge", random_base, files["whole"], "precision=float32", "--out", tmp_path / "whole")[0] == 0
    file = "unet/diffusion_pytorch_model.safetensors"
    part, whole = (load_file(tmp_path / name / file) for name in ("part", "whole"))
    assert all(torch.equal(part[key], whole[key]) for key in whole)


def test_another_family_is_an_error_all_the_same(run_limner: Limner, random_base: Path, tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 2048), f"{layer}.lora_B.weight": torch.ones(16, 2)},
        tmp_path / "xl.safetensors",
    )
    code, err, _ = draw(run_limner, random_base, tmp_path / "xl.safetensors", tmp_path / "out", "--allow-partial")
    assert code == 2
    assert "is a LoRA for SDXL (cross-attention 2048)" in err
