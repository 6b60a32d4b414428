"""Files for and from other programs, from the command line: what is written draws what the run draws."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from limner.adapters.lora import LoRA
from limner.export.diffusers_lora import write_lora
from limner.export.embedding import write_embedding
from limner.families.load import load
from limner.recipe import load_recipe, save_recipe
from tests.lora_layouts import as_written_by, changes, draw, save
from tests.pipeline.conftest import Result

Limner = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, random_base: Path) -> Path:
    """Make the folder of a run that has trained a LoRA and a word."""
    folder = tmp_path / "run"
    folder.mkdir()
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    settings = {"base": str(random_base), "pictures.token": "sks", "pictures.class_noun": "dog", "resolution": 64}
    save_recipe(load_recipe("lora", settings), folder / "recipe.toml")
    layers = changes(family, "LoRA", every=2)
    state = {}
    for name, change in layers.items():
        own = change.tensors()
        state |= {f"{name}.lora_A": torch.tensor(own["lora_down.weight"]), f"{name}.alpha": torch.tensor(1.0),
                  f"{name}.lora_B": torch.tensor(own["lora_up.weight"]).flatten(1)}  # fmt: skip
    write_lora(state, folder / "adapter.safetensors", {**family.facts, "token": "sks"})
    return folder


def drawn(run_limner: Limner, base: Path, adapter: Path, out: Path) -> list[np.ndarray]:
    steps = ("generation.num_inference_steps=2", "generation.guidance_scale=2.0", "resolution=64")
    words = ("generate", base, *steps, "--prompt", "a sks dog", "--adapter", adapter, "--seeds", "2", "--out", out)
    code, _, err = run_limner(*words, "--json")
    assert code == 0, err
    return [np.asarray(Image.open(file), dtype=int) for file in sorted(out.rglob("*.png"))]


def test_a_run_exported_and_taken_back_draws_the_same(
    run_limner: Limner, run: Path, random_base: Path, tmp_path: Path
) -> None:
    code, out, err = run_limner("export", run, "--to", "kohya", "precision=float16")
    assert code == 0, err
    kohya = Path(out.strip())
    assert kohya == run / "adapter-kohya.safetensors"
    assert {str(t.dtype) for n, t in load_file(kohya).items() if not n.endswith("alpha")} == {"torch.float16"}
    code, out, _ = run_limner("export", kohya, "--to", "diffusers", "precision=float32", "--out", tmp_path, "--json")
    assert code == 0
    back = Path(json.loads(out)["file"])
    first, *others = (drawn(run_limner, random_base, file, tmp_path / file.stem) for file in
                      (run / "adapter.safetensors", kohya, back))  # fmt: skip
    assert len(first) == 2
    for other in others:
        assert max(np.abs(a - b).max() for a, b in zip(first, other, strict=True)) <= 3, "float16's rounding"
    plain = tmp_path / "plain.safetensors"
    save_file({n: torch.zeros_like(t) for n, t in load_file(back).items()}, plain)
    untouched = drawn(run_limner, random_base, plain, tmp_path / "plain")
    assert max(np.abs(a - b).max() for a, b in zip(first, untouched, strict=True)) > 20


def test_inspect_tells_all_of_a_run(run_limner: Limner, run: Path) -> None:
    word = {"text_encoder": torch.ones(2, 32)}
    write_embedding(word, run / "embeddings" / "dog.safetensors", token="<dog>", about={"family": "sd15"})
    code, out, err = run_limner("inspect", run, "--json")
    assert code == 0, err
    lora, embedding = json.loads(out)["holds"]
    assert {key: embedding[key] for key in ("kind", "token")} == {"kind": "embedding", "token": "<dog>"}
    assert {key: lora[key] for key in ("kind", "family", "layout", "trigger_words", "precision", "has_effect")} == {
        "kind": "lora", "family": "sd15", "layout": "diffusers", "trigger_words": ["sks"], "precision": "float32",
        "has_effect": True,
    }  # fmt: skip
    assert lora["ranks"] == {"2": sum(lora["layers"].values())}
    total = sum(norm**2 for norm in lora["norms"]["parts"].values()) ** 0.5
    blocks = sum(norm**2 for norm in lora["norms"]["blocks"].values()) ** 0.5
    assert total == pytest.approx(blocks, rel=1e-4)
    uses = {use["program"]: use["used"] == use["total"] for use in lora["loads"]}
    assert uses == {"diffusers": True, "ComfyUI": True, "kohya sd-scripts": False, "A1111 and Forge": False}
    assert "trigger words: sks" in run_limner("inspect", run / "adapter.safetensors")[1]


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA by inputs"])
def test_what_is_no_plain_lora_is_drawn_with_too(
    kind: str, run_limner: Limner, random_base: Path, tmp_path: Path
) -> None:
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    tensors = {f"lora_unet_{name.partition('.')[2].replace('.', '_')}.{role}": array
               for name, change in changes(family, kind, every=3).items() if name.startswith("unet.")
               for role, array in change.tensors().items()}  # fmt: skip
    pictures = drawn(run_limner, random_base, save(tensors, tmp_path / "x.safetensors"), tmp_path / "drawn")
    assert len(pictures) == 2
    assert f" {kind.split()[0]}" in run_limner("inspect", tmp_path / "x.safetensors")[1]


def test_words_that_a_lora_brings_along_are_drawn_with(run_limner: Limner, random_base: Path, tmp_path: Path) -> None:
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    layers = changes(family, "LoRA", every=20)
    tensors = {name: 0 * array for name, array in as_written_by("kohya", layers).items()}
    pictures = []
    for scale in (0.0, 9.0):
        word = {"bundle_emb.sks.clip_l": scale * draw(1, 32)}
        file = save({**tensors, **word}, tmp_path / f"{scale}.safetensors")
        pictures.append(drawn(run_limner, random_base, file, tmp_path / f"drawn-{scale}"))
    assert np.abs(pictures[0][0] - pictures[1][0]).max() > 0


def test_a_run_begins_with_a_file_of_kohyas(run_limner: Limner, random_base: Path, tmp_path: Path) -> None:
    from limner.families.source import ASSETS

    family = load(str(random_base), dtype=torch.float32, device="cpu")
    names = LoRA(targets="attention").find_targets(family.modules)
    layers = {name: change for name, change in changes(family, "LoRA").items() if name in names}
    file = save(as_written_by("kohya", layers), tmp_path / "x.safetensors")
    code, _, err = run_limner(
        "train", ASSETS / "demo" / "critter", "--run", tmp_path / "run", f"base={random_base}", f"init_from={file}",
        "steps=1", "resolution=64", "adapter.save_precision=float32", "adapter.rank=2", "adapter.targets=attention",
        "learning_rate=1e-9", "--json",
        "pictures.class_noun=dog",
    )  # fmt: skip
    assert code == 0, err
    found = load_file(tmp_path / "run" / "adapter.safetensors")
    assert set(layers) == {name.removesuffix(".lora_A.weight") for name in found if name.endswith(".lora_A.weight")}
    for name, change in layers.items():
        ours = found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        torch.testing.assert_close(ours, torch.tensor(change.delta()), rtol=1e-4, atol=1e-5)


def test_inspect_waits_for_no_torch() -> None:
    """torch alone takes as long to import as `inspect` may take in all."""
    script = "import sys, limner.inspecting; print({'torch', 'diffusers', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
