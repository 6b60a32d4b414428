"""LoRA files: what one program writes, another reads as the same change, in every layout, kind and precision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from limner.adapters.dense import attach_deltas
from limner.export.diffusers_lora import write_diffusers
from limner.export.kohya_lora import write_kohya
from limner.export.lora_check import difference
from limner.export.lora_files import read_any_lora
from limner.export.programs import uses
from limner.families.family import Family
from limner.families.recognise import FAMILIES
from tests.lora_layouts import HAS_ALPHA, KINDS, NAMES, as_written_by, changes, save

BOTH = ("A1111 and Forge", "ComfyUI")
"""The programs that read LyCORIS's methods; each lacks one."""
WRITERS = {"diffusers": write_diffusers, "kohya": write_kohya}


def predicted(family: Family) -> torch.Tensor:
    x_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return family.predict(x_t, torch.tensor([3, 700]), family.encode_text(["a red dog", "b"]))


@pytest.mark.parametrize(
    ("writer", "kind"),
    [("diffusers", "LoRA"), ("diffusers", "DoRA by outputs"), *(("kohya", kind) for kind in KINDS)],
)
def test_what_is_written_means_the_same_when_it_is_read(writer: str, kind: str, family: Family, tmp_path: Path) -> None:
    layers, path = changes(family, kind, every=5), tmp_path / "x.safetensors"
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        WRITERS[writer](layers, path, family.facts, dtype=dtype)
        lora = read_any_lora(path)
        assert lora.layers.keys() == layers.keys()
        assert (lora.family, lora.precision, lora.alpha_is_assumed) == (family.kind, str(dtype).split(".")[1], False)
        worst = max(difference(layers[name], change) for name, change in lora.layers.items())
        assert worst <= (1e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps), dtype
    base = predicted(family)
    adapter = attach_deltas(family.modules, layers, {})
    wanted = predicted(family)
    adapter.detach()
    adapter = lora.attach(family.modules)
    torch.testing.assert_close(predicted(family), wanted, rtol=1e-5, atol=1e-5)
    adapter.merge()
    torch.testing.assert_close(predicted(family), wanted, rtol=1e-5, atol=1e-5)
    adapter.detach()
    assert not torch.allclose(wanted, base, atol=1e-3)
    assert torch.equal(predicted(family), base), "the base is bit for bit what it was"


def test_what_other_programs_write_is_read(family: Family, tmp_path: Path) -> None:
    every = changes(family, "LoRA")
    about = {"limner": f'{{"layers_per_block": {family.unet.config.layers_per_block}}}'}
    for program, (_, _, layers_of) in NAMES.items():
        layers = {name: change for name, change in every.items() if re.search(layers_of, name)}
        lora = read_any_lora(save(as_written_by(program, layers), tmp_path / "x.safetensors", about))
        assert lora.layers.keys() == layers.keys(), program
        assert max(difference(change, lora.layers[name]) for name, change in layers.items()) <= 1e-6, program
        assert lora.alpha_is_assumed is (program not in HAS_ALPHA), program


def test_there_and_back_gives_the_same_bits(family: Family, tmp_path: Path) -> None:
    first, kohya, again = (tmp_path / f"{name}.safetensors" for name in ("first", "kohya", "again"))
    write_diffusers(changes(family, "LoRA"), first, family.facts)
    write_kohya(read_any_lora(first).layers, kohya, family.facts)
    write_diffusers(read_any_lora(kohya).layers, again, family.facts)
    assert again.read_bytes() == first.read_bytes()


def test_float16_rounds_no_small_factor_to_nothing(family: Family, tmp_path: Path) -> None:
    """B of 1e-7 is below what float16 can hold; a power of two moves from A to B."""
    (name, change), *_ = changes(family, "LoRA").items()
    small: Any = type(change)(change.A, change.B * np.float32(1e-6), 1.0)  # type: ignore[attr-defined]
    for writer in WRITERS.values():
        writer({name: small}, tmp_path / "x.safetensors", family.facts, dtype=torch.float16)
        assert difference(small, read_any_lora(tmp_path / "x.safetensors").layers[name]) < 2e-3


def test_every_key_of_a_kohya_file_is_used_by_the_programs_that_read_it(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    others = {"OFT": BOTH, "BOFT": BOTH, "(IA)^3": BOTH[:1], "GLoRA": BOTH[1:], "LoHa": BOTH, "LoKr": BOTH}
    for kind in ("LoRA", *others):
        write_kohya(changes(family, kind, every=3), path, family.facts)
        found = {use.program: use for use in uses(list(load_file(path)))}
        readers = others.get(kind, tuple(found))
        assert all(found[name].used == found[name].total for name in readers), found


def test_a_kohya_file_says_what_the_programs_look_for(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    write_kohya(changes(family, "LoRA", every=9), path, {**family.facts, "token": "sks", "base": "/some/where/model"})
    with safe_open(str(path), "pt") as file:
        said = file.metadata()
    assert said["ss_base_model_version"] == FAMILIES[family.kind].kohya.base_model_version
    assert said["modelspec.architecture"] == f"{FAMILIES[family.kind].modelspec}/lora"
    assert said["modelspec.trigger_phrase"] == "sks"
    assert {key: said[f"ss_{key}"] for key in ("v2", "network_module", "network_dim", "network_alpha", "output_name",
            "sd_model_name", "tag_frequency")} == {
        "v2": "False", "network_module": "networks.lora", "network_dim": "2", "network_alpha": "1",
        "output_name": "dog", "sd_model_name": "model", "tag_frequency": '{"dog": {"sks": 1}}',
    }  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_stock_diffusers_holds_the_same_weights(writer: str, family: Family, random_base: Path, tmp_path: Path) -> None:
    """Every weight of the model after `load_lora_weights` and `fuse_lora` is that of our own merge, to 1e-5."""
    layers, path = changes(family, "LoRA"), tmp_path / "x.safetensors"
    WRITERS[writer](layers, path, family.facts)
    pipe = DiffusionPipeline.from_pretrained(random_base)
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    roots = {name: family.modules[name.partition(".")[0]].get_submodule(name.partition(".")[2]) for name in layers}
    before = {name: layer.get_parameter("weight").clone() for name, layer in roots.items()}
    read_any_lora(path).attach(family.modules).merge()
    for name in layers:
        root, _, inside = name.partition(".")
        theirs = getattr(pipe, root).get_submodule(inside).get_parameter("weight")
        ours = family.modules[root].get_submodule(inside).get_parameter("weight")
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, before[name], atol=1e-4)
