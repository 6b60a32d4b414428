"""Weights files: read one tensor at a time, pickled code never run, what does not fit is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limner.errors import UserError
from limner.families import weights
from limner.families.load import load
from limner.families.recognise import recognise
from limner.families.weights import choose_weights, fill, read_header, read_tensors, weights_files

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.0, -2.0]), "c": torch.ones(4, 4)}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin"])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, ending: str) -> None:
    file, mark = tmp_path / f"model{ending}", tmp_path / "it-ran"
    torch.save({"state_dict": TENSORS, "extra": Malicious(mark)}, file)
    with pytest.raises(UserError) as caught:
        recognise(str(file))
    assert str(caught.value) == (
        f"{file}: contains pickled code ({os.mkdir.__module__}.mkdir) and was not loaded. "
        "Use a .safetensors file of the same model."
    )
    assert not mark.exists()


def test_bare_pickles_are_refused(tmp_path: Path) -> None:
    file, mark = tmp_path / "model.ckpt", tmp_path / "it-ran"
    torch.save(Malicious(mark), file, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="is a bare pickle or damaged, and was not loaded"):
        read_header(file)
    assert not mark.exists()


def test_pickled_weights_inside_a_folder_are_refused_alike(random_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(random_base, folder)
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Malicious(tmp_path / "it-ran")}, folder / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="contains pickled code"):
        load(str(folder), dtype=torch.float32, device="cpu")
    assert not (tmp_path / "it-ran").exists()


def test_the_header_of_a_pickled_file_is_read_without_its_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "global_step": 3}, tmp_path / "model.ckpt")
    assert read_header(tmp_path / "model.ckpt").shapes == {"a": (2, 3), "b": (2,), "c": (4, 4)}


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("window", [1, 2**20])
def test_tensors_are_copies_in_the_wanted_dtype(
    tmp_path: Path, ending: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WINDOW_BYTES", window)
    file = tmp_path / f"model{ending}"
    torch.save(TENSORS, file) if ending == ".ckpt" else save_file(TENSORS, file)
    for dtype in (torch.float32, torch.bfloat16):
        read = dict(read_tensors(file, ["a", "c"], dtype=dtype, device="cpu"))
        assert read.keys() == {"a", "c"}
        for name, tensor in read.items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, TENSORS[name].to(dtype))
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, "a view of the whole file"


def test_from_float16_to_bfloat16_every_value_is_rounded_as_by_torch(tmp_path: Path) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    tensors = {"many": every.repeat(3)[:-3].view(5, -1), "one": every[15361].clone(), "none": every[:0].clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    read = dict(read_tensors(tmp_path / "model.safetensors", list(tensors), dtype=torch.bfloat16, device="cpu"))
    for name, tensor in tensors.items():
        assert read[name].shape == tensor.shape
        torch.testing.assert_close(read[name], tensor.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def test_full_precision_goes_before_a_variant_and_safetensors_before_pickles() -> None:
    stem = "diffusion_pytorch_model"
    order = [f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}.fp16.safetensors", f"{stem}.bin"]
    for first in range(len(order)):
        assert choose_weights(["config.json", f"{stem}.non_ema.safetensors", *reversed(order[first:])]) == order[first]
    assert choose_weights(["config.json", f"{stem}.non_ema.safetensors"]) is None


def test_shards_are_named_by_their_index_and_stay_in_the_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "../../model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(weights_files(tmp_path)) == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"weight": torch.ones(3, 2)}, "1 weights are missing (first: bias)"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "x": torch.ones(1)}, "1 have no place in the model"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(3)}, r"weight is (2, 3) and should be (3, 2)"),
    ],
)
def test_what_does_not_fit_is_named(state: dict[str, torch.Tensor], line: str) -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 3)
    with pytest.raises(UserError) as caught:
        fill(module, state, where="base='x': unet")
    assert str(caught.value).startswith("base='x': unet: does not fit its configuration: ")
    assert line in str(caught.value)


def test_a_filled_module_has_the_given_memory() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    fill(module, state, where="here")
    assert module.weight.data_ptr() == state["weight"].data_ptr()
