"""What every exporter must do: write, read back, and mean the same to the program it is for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA, attach_lora
from limner.errors import Guarded, UserError
from limner.export.diffusers_folder import write_diffusers_folder
from limner.export.diffusers_lora import write_lora
from limner.export.lora_check import has_effect
from limner.export.lora_files import read_any_lora
from limner.export.single_file import write_single_file
from limner.families.family import Family
from limner.families.recognise import FAMILIES
from limner.families.source import ASSETS
from limner.recipe import load_recipe

SPECS = {
    "rank-1": LoRA(rank=1),
    "alpha": LoRA(rank=4, alpha=1.0),
    "all": LoRA(rank=2, targets="all"),
    "text": LoRA(text_encoder=True),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def state(request: pytest.FixtureRequest, family: Family) -> dict[str, torch.Tensor]:
    adapter = request.param.attach(family, [SlotSettings(seed=1)])
    for parameter in adapter.slot_parameters(0).values():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    found = adapter.state_dict()
    adapter.detach()
    return found


def test_round_trip_gives_the_same_model(state: dict[str, torch.Tensor], family: Family, tmp_path: Path) -> None:
    x_t, t, prompts = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), ["a", "b"]
    adapter = attach_lora(family.modules, state)
    with torch.no_grad():
        before = family.predict(x_t, t, family.encode_text(prompts))
    adapter.detach()
    write_lora(state, tmp_path / "a.safetensors", {"family": family.kind})
    lora = read_any_lora(tmp_path / "a.safetensors")
    lora.attach(family.modules)
    with torch.no_grad():
        after = family.predict(x_t, t, family.encode_text(prompts))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert lora.about == {"family": family.kind}


def test_the_program_it_is_for_uses_every_key(
    state: dict[str, torch.Tensor], random_base: Path, tmp_path: Path
) -> None:
    """No key of the file is left over and no adapter weight is missing in diffusers."""
    path = tmp_path / "a.safetensors"
    write_lora(state, path, {})
    pipe = _read(random_base)
    pipe.load_lora_weights(str(path))
    named = {f"{part}.{n}": p for part, module in _modules(pipe).items() for n, p in module.named_parameters()}
    loaded = {n.replace(".default_0", ""): p for n, p in named.items() if ".lora_" in n}
    # The file says `text_model` for older programs and for ComfyUI; CLIPTextModel has none since transformers 5.6.
    written = {n.replace("text_encoder.text_model.", "text_encoder."): t for n, t in load_file(str(path)).items()}
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())


def test_weights_that_are_not_finite_are_never_written(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = next(name for name in state if name.endswith(".lora_B"))
    with pytest.raises(Guarded, match="is not finite"):
        write_lora({**state, name: torch.full_like(state[name], float("nan"))}, tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_a_lora_of_zeros_has_no_effect(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(t) if name.endswith(".lora_B") else t for name, t in state.items()}
    for tensors, has_one in ((state, True), (zeros, False)):
        write_lora(tensors, tmp_path / "a.safetensors", {})
        assert has_effect(read_any_lora(tmp_path / "a.safetensors").layers) is has_one


def test_a_lora_says_what_it_is_and_equal_weights_give_equal_bytes(
    state: dict[str, torch.Tensor], family: Family, tmp_path: Path
) -> None:
    about = {**family.facts, "token": "sks", "class_noun": "critter"}
    for name in ("a", "b"):
        write_lora(state, tmp_path / name / "x.safetensors", about)
    assert (tmp_path / "a/x.safetensors").read_bytes() == (tmp_path / "b/x.safetensors").read_bytes()
    said = {k: v for k, v in _header(tmp_path / "a/x.safetensors").items() if k.startswith("modelspec.")}
    assert said == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{FAMILIES[family.kind].modelspec}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "sks critter",
        "modelspec.trigger_phrase": "sks",
        "modelspec.prediction_type": "v",
        "modelspec.resolution": "64x64",
    }


# A whole model. `WRITERS` is the list: what is written, and how the program it is for reads it (a single file holds no
# configuration, so diffusers takes that from a folder).

WRITERS: dict[str, tuple[str, Callable[..., Path], Callable[[Path, Path], Any]]] = {
    "diffusers-folder": (
        "model",
        write_diffusers_folder,
        lambda path, _base: _read(path),
    ),
    "single-file": (
        "model.safetensors",
        write_single_file,
        lambda path, base: type(_read(base)).from_single_file(str(path), config=str(base)),
    ),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=WRITERS.values(), ids=WRITERS.keys())
def exporter(request: pytest.FixtureRequest) -> tuple[str, Callable[..., Path], Callable[[Path, Path], Any]]:
    return request.param


def _read(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder)


def _header(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return file.metadata()


def _modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _weights(modules: Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{part}.{k}": v for part, module in modules.items() for k, v in module.state_dict().items()}


def _picture(pipe: Any) -> np.ndarray[Any, Any]:
    """Draw with weights in memory of their own: where a mapped file's tensor begins changes a product's last bit."""
    for part in _modules(pipe).values():
        for weight in part.parameters():
            weight.data = weight.data.clone()
    pipe.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(7)
    return pipe("a sks thing", num_inference_steps=2, generator=draws, output_type="np").images


def _files(path: Path) -> dict[str, bytes]:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in found}


@pytest.mark.parametrize(
    "spec", [LoRA(targets="all", text_encoder=True), Full(text_encoder=True)], ids=["lora", "full"]
)
def test_a_written_model_draws_the_identical_picture(
    exporter: Any, spec: LoRA | Full, family: Family, tmp_path: Path
) -> None:
    """What is written are the weights as they stand, with what learned in them."""
    name, write, read = exporter
    before = _picture(family.pipeline(DDIMScheduler.from_config(family.scheduler_config)))
    adapter = spec.attach(family, [SlotSettings(seed=1)])
    with torch.no_grad():
        for parameter in adapter.slot_parameters(0).values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    adapter.merge()
    wanted = _picture(family.pipeline(DDIMScheduler.from_config(family.scheduler_config)))
    path = write(family, tmp_path / name, dtype=torch.float32, about={})
    folder = write_diffusers_folder(family, tmp_path / "config", dtype=torch.float32, about={})
    found = _picture(read(path, folder))
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tensor_comes_back_bit_for_bit(
    exporter: Any, dtype: torch.dtype, family: Family, random_base: Path, tmp_path: Path
) -> None:
    name, write, read = exporter
    path = write(family, tmp_path / name, dtype=dtype, about={})
    found, wanted = _weights(_modules(read(path, random_base))), _weights({**family.modules, "vae": family.vae})
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k].to(dtype), wanted[k].to(dtype)) for k in wanted)
    size = sum(len(data) for data in _files(path).values())
    assert size < 1.5 * sum(t.numel() * dtype.itemsize for t in wanted.values()) + 500_000


def test_equal_weights_give_equal_bytes(exporter: Any, family: Family, tmp_path: Path) -> None:
    name, write, _ = exporter
    first = _files(write(family, tmp_path / "a" / name, dtype=torch.float16, about={"token": "sks"}))
    family.encode_text(["what was encoded in between leaves no trace"])
    _picture(family.pipeline(DDIMScheduler.from_config(family.scheduler_config)))
    assert _files(write(family, tmp_path / "b" / name, dtype=torch.float16, about={"token": "sks"})) == first


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e5, torch.float16)])
def test_a_model_that_is_not_finite_leaves_nothing_behind(
    exporter: Any, value: float, dtype: torch.dtype, family: Family, tmp_path: Path
) -> None:
    name, write, _ = exporter
    write(family, tmp_path / name, dtype=dtype, about={})
    before = _files(tmp_path)
    with torch.no_grad():
        family.unet.conv_out.weight[0, 0, 0, 0] = value
    with pytest.raises(Guarded, match=f"not finite in {str(dtype).removeprefix('torch.')}"):
        write(family, tmp_path / name, dtype=dtype, about={})
    assert _files(tmp_path) == before, "the model of before stays, and nothing beside it"


def test_a_model_with_layers_of_an_adapter_in_it_is_refused(exporter: Any, family: Family, tmp_path: Path) -> None:
    name, write, _ = exporter
    family.unet.conv_out.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="conv_out.extra.bias is not as in a plain model"):
        write(family, tmp_path / name, dtype=torch.float32, about={})
    assert not list(tmp_path.iterdir())


def test_a_single_file_says_what_it_is(family: Family, tmp_path: Path) -> None:
    path = write_single_file(family, tmp_path / "x.safetensors", dtype=torch.float16, about={"token": "sks"})
    said = _header(path)
    assert said["modelspec.architecture"] == FAMILIES[family.kind].modelspec
    assert said["modelspec.trigger_phrase"] == "sks"
    assert said["modelspec.prediction_type"] == "v"
    assert json.loads(said["limner"]) == {**family.facts, "token": "sks"}
    markers = {k: t for k, t in load_file(path).items() if "." not in k}
    assert {k: t.numel() for k, t in markers.items()} == {"v_pred": 0}, "ComfyUI and Forge look for this key"


def test_a_single_file_marks_a_schedule_that_ends_in_noise(family: Family, tmp_path: Path) -> None:
    family.set_schedule(zero_terminal_snr=True)
    path = write_single_file(family, tmp_path / "x.safetensors", dtype=torch.float16, about={})
    assert {k for k in load_file(path) if "." not in k} == {"v_pred", "ztsnr"}


def test_a_folder_serves_older_programs_too(family: Family, tmp_path: Path) -> None:
    """transformers before 5.6 needs `text_model.` in every name, and before 5 reads vocab.json and merges.txt."""
    path = write_diffusers_folder(family, tmp_path / "model", dtype=torch.float16, about={"token": "sks"})
    assert all(k.startswith("text_model.") for k in load_file(path / "text_encoder" / "model.safetensors"))
    (path / "tokenizer" / "tokenizer.json").unlink()
    older, ours = CLIPTokenizer.from_pretrained(path / "tokenizer"), family.encoders["text_encoder"].tokenizer
    for prompt in ("a photo of sks critter", "Zürich, 23 o'clock!! <x>", ""):
        assert older(prompt).input_ids == ours(prompt).input_ids
    assert older.model_max_length == ours.model_max_length


def test_a_folder_samples_as_the_model_was_taught(family: Family, tmp_path: Path) -> None:
    """PNDM, which SD 1.5 comes with, cannot begin at pure noise: it would draw grey pictures and say nothing."""
    family.scheduler_config["_class_name"] = "PNDMScheduler"
    path = write_diffusers_folder(family, tmp_path / "model", dtype=torch.float16, about={})
    assert type(_read(path).scheduler) is PNDMScheduler
    family.set_schedule(zero_terminal_snr=True)
    write_diffusers_folder(family, path, dtype=torch.float16, about={})
    read = _read(path).scheduler
    assert type(read) is DDIMScheduler
    assert (read.config.timestep_spacing, read.config.prediction_type) == ("trailing", "v_prediction")
    torch.testing.assert_close(read.alphas_cumprod, family.schedule.alphas_cumprod)


def test_a_folder_names_no_place_of_this_machine(family: Family, random_base: Path, tmp_path: Path) -> None:
    family.name = "mine"
    path = write_diffusers_folder(family, tmp_path / "model", dtype=torch.float16, about={"token": "sks"})
    assert json.loads((path / "limner.json").read_text()) == {**family.facts, "token": "sks"}
    for place in (random_base, tmp_path):
        assert not [name for name, data in _files(path).items() if str(place).encode() in data]


def test_only_a_folder_of_ours_is_replaced(family: Family, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no model of Limner's"):
        write_diffusers_folder(family, other, dtype=torch.float16, about={})
    assert _files(other) == {"thesis.txt": b"years of work"}
    mine.mkdir()
    for token in ("old", "new"):
        write_diffusers_folder(family, mine, dtype=torch.float16, about={"token": token})
    assert json.loads((mine / "limner.json").read_text())["token"] == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "other"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_the_bytes_for_nearly_the_same_change(
    state: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    write_lora(state, whole, {})
    write_lora(state, half, {}, dtype=dtype)
    assert {t.dtype for t in load_file(half).values()} == {dtype}
    tensors = [sum(t.nbytes for t in load_file(f).values()) for f in (whole, half)]
    assert tensors[0] == 2 * tensors[1]
    assert read_any_lora(half).state_dict().keys() == state.keys()


@pytest.mark.parametrize(
    ("recipe", "numbers"), [("tiny-adapter", 797_184), ("lora", 1_594_368), ("dreambooth-lora", 2_184_192)]
)
def test_recipes_keep_the_promise_of_small_files(recipe: str, numbers: int) -> None:
    """Counted on the published SD 1.5 architecture, without memory: 1 to 6 MB, hundreds of times fewer numbers."""
    folder = ASSETS / "sd15"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(folder / "unet")))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(str(folder / "text_encoder")))
    spec = load_recipe(recipe).adapter
    assert isinstance(spec, LoRA)
    layers = spec.find_targets({"unet": unet, "text_encoder": text_encoder}).values()
    counted = sum(spec.rank * (math.prod(layer.weight.shape[1:]) + layer.weight.shape[0]) for layer in layers)
    assert counted == numbers
    assert sum(p.numel() for p in unet.parameters()) / counted > 390
    assert spec.save_precision == "float16"
    assert 1e6 < 2 * counted < 6e6
