"""Parts of the base that training does not need are put aside: less memory, the same run bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limner import run
from limner.errors import UserError
from limner.families.family import Family
from limner.families.load import complete, fingerprints, load
from limner.families.source import ASSETS
from limner.families.storage import BaseStorage
from limner.prepare.check import Checked
from limner.prepare.encode import prepare
from limner.prepare.prepared import Prepared
from limner.recipe import load_recipe
from limner.rundir import RunDir, read_json
from limner.train.trace import BLOCK_BYTES
from tests.pipeline.test_plan import planned

CRITTER = ASSETS / "demo" / "critter"


DRAWS = {"preview.every_steps": 2, "preview.images": 1}


def train(base: Path, folder: Path, recipe: str, **more: Any) -> RunDir:
    settings = {"base": str(base), "steps": 3, "batch": 2, "pictures.class_noun": "critter", "prior.enabled": False,
                "checkpoint.every_steps": 2, "ema.decay": 0.5, "generation.num_inference_steps": 2,
                "optimizer.warmup_steps": 0, **more}  # fmt: skip
    return run.train(CRITTER, recipe=recipe, settings=settings, run=folder)


def content(folder: RunDir) -> dict[str, bytes]:
    """Return the bytes of the pictures drawn meanwhile, of the checkpoints' weights and of the model that is saved."""
    files = [*folder.previews.rglob("*.png"), *folder.checkpoints.rglob("*.safetensors"), *folder.model.rglob("*.s*")]
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("recipe", ["lora", "dreambooth"])
def test_a_run_that_puts_parts_aside_is_the_same_run(random_base: Path, tmp_path: Path, recipe: str) -> None:
    plain = train(random_base, tmp_path / "plain", recipe, **DRAWS)
    lean = train(random_base, tmp_path / "lean", recipe, unload=True, **DRAWS)
    assert content(lean) == content(plain)
    assert {file.suffix for file in map(Path, content(lean))} >= {".png", ".safetensors"}
    if recipe == "lora":
        run.resume(lean.path, settings={"steps": 4, "unload": False})


def test_by_itself_a_run_puts_aside_what_nothing_needs_again(random_base: Path, tmp_path: Path) -> None:
    plain = train(random_base, tmp_path / "plain", "lora", unload=False)
    lean = train(random_base, tmp_path / "lean", "lora")
    assert content(lean) == content(plain)
    recipe = load_recipe("lora")
    assert recipe.puts_aside(alone=True)
    assert not recipe.puts_aside(alone=False)
    drawing = planned(CRITTER, random_base, preview__every_steps=2)
    whole_model = planned(CRITTER, random_base, recipe="dreambooth")
    one = planned(CRITTER, random_base)
    weights = [next(work for work in found.phases if work.name == "train").weights_bytes
               for found in (one, drawing, whole_model)]  # fmt: skip
    assert weights[0] < weights[1] == weights[2]


def test_what_is_put_aside_has_no_memory_and_comes_back_bit_for_bit(family: Family) -> None:
    before = fingerprints(family)
    family.put_aside("vae", "text_encoder")
    held = [weight.untyped_storage().nbytes() for part in family.aside for weight in family.parts[part].parameters()]
    assert len(held) > 20
    assert not any(held)
    with pytest.raises(RuntimeError):
        family.decode(torch.zeros(1, 4, 16, 16))
    with family.whole():
        assert fingerprints(family) == before
        assert not family.aside
    assert family.aside == {"vae", "text_encoder"}
    with family.whole(), family.whole():
        family.decode(torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize("storage", ["as_computed", "nf4"])
def test_a_part_that_was_left_unread_is_the_same_when_it_comes(random_base: Path, storage: BaseStorage) -> None:
    named: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "storage": storage}
    whole, later = load(str(random_base), **named), load(str(random_base), **named, unread=("unet",))
    assert later.aside == later.unread == {"unet"}
    assert later.identity.keys() == {"vae", "text"}
    assert all(weight.is_meta for weight in later.unet.parameters())
    later.encode_pixels(torch.zeros(1, 3, 64, 64))
    later.put_aside("vae")
    complete(later)
    assert list(later.identity.items()) == list(whole.identity.items()), "in the same order: keys are made of it"
    assert later.aside == {"vae"}
    assert [weight.requires_grad for weight in later.unet.parameters()].count(True) == 0
    x_t, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    drawn = [family.predict(x_t, t, family.encode_text(["a", "b"])) for family in (whole, later)]
    assert torch.equal(*drawn)
    complete(later)
    assert later.aside == {"vae"}, "nothing was left"


def test_a_part_that_does_not_fit_is_refused_before_it_is_read(random_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(random_base, tmp_path / "base"))
    file = next((base / "unet").glob("*.safetensors"))
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "conv_in.bias"}, file)
    with pytest.raises(UserError, match=r"unet: does not fit its configuration: 1 weights are missing"):
        load(str(base), dtype=torch.float32, device="cpu", unread=("unet",))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a readable .safetensors file"):
        load(str(base), dtype=torch.float32, device="cpu", unread=("unet",))


@pytest.mark.parametrize(("more", "is_late"), [({}, True), ({"prior.enabled": True, "prior.count": 1}, False)])
def test_the_unet_is_read_after_pictures_are_encoded_unless_it_draws_some(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], is_late: bool
) -> None:
    seen: list[frozenset[str]] = []

    def watched(checked: Checked, family: Family, **named: Any) -> Prepared:
        seen.append(family.unread)
        return prepare(checked, family, **named)

    monkeypatch.setattr("limner.training_run.prepare", watched)
    folder = train(random_base, tmp_path / "run", "lora", **more)
    assert seen == [frozenset({"unet"} if is_late else ())]
    names = [row["name"] for row in folder.read_log("phase")]
    assert names.count("load") == 1 + is_late
    base = load(str(random_base), dtype=torch.float32, device="cpu")
    assert read_json(folder.provenance)["base"]["identity"] == base.identity


OF_TEXT = {
    "lora": ({}, True),
    "lora of text too": ({"adapter.text_encoder": True}, False),
    "lora of named layers": ({"adapter.targets": ["text_encoder.*.q_proj", "*.to_q"]}, False),
    "a method of peft": ({"adapter.kind": "peft", "adapter.method": "loha"}, True),
    "words": ({"adapter.kind": "textual_inversion"}, False),
    "all weights": ({"adapter.kind": "full", "adapter.targets": "all", "unload": True}, True),
}
"""By name: settings, and whether the text encoder is aside when the UNet is read."""


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_text_encoder_that_surely_does_not_learn_is_aside_when_the_unet_is_read(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    more, is_aside = OF_TEXT[name]
    seen: list[frozenset[str]] = []

    def watched(family: Family) -> None:
        seen.append(family.aside)
        complete(family)

    monkeypatch.setattr("limner.training_run.complete", watched)
    folder = train(random_base, tmp_path / "run", "lora", steps=1, **more)
    assert seen == [frozenset({"unet", "vae", *(["text_encoder"] if is_aside else [])})]
    assert folder.read_log("step")


def test_files_that_changed_meanwhile_are_not_taken_for_the_base(random_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(random_base, tmp_path / "base"))
    family = load(str(base), dtype=torch.float32, device="cpu")
    family.put_aside("vae")
    unread = load(str(base), dtype=torch.float32, device="cpu", unread=("unet",))
    file = next((base / "vae").glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="its files have changed since it was loaded"), family.whole():
        pass
    with pytest.raises(UserError, match="its files have changed since it was loaded"):
        complete(unread)
    shutil.rmtree(base / "vae")
    with pytest.raises(UserError, match="its files have changed since it was loaded"), family.whole():
        pass


@pytest.mark.parametrize("recipe", ["lora", "textual-inversion"])
def test_the_plan_knows_what_is_put_aside(random_base: Path, recipe: str) -> None:
    found = planned(CRITTER, random_base, recipe=recipe, preview__every_steps=2, unload=True)
    weights = {work.name: work.weights_bytes for work in found.phases}
    sizes = {file.parent.name: in_blocks(file) for file in random_base.rglob("*.safetensors")}
    needed = sizes["unet"] + (0 if recipe == "lora" else sizes["text_encoder"])
    assert weights["train"] == weights["save"] == needed
    whole = sum(sizes.values())
    assert weights["prepare"] == whole - sizes["unet"], "which is read after that, when what learns not is aside"
    assert weights["load"] == needed
    assert weights["preview"] == weights["draw"] == whole


def in_blocks(file: Path) -> int:
    """Return what a file's tensors take in memory that is given in blocks."""
    return sum(-(-tensor.nbytes // BLOCK_BYTES) * BLOCK_BYTES for tensor in load_file(file).values())
