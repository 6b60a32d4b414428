"""An embedding file means the same to diffusers, A1111 and ComfyUI, and theirs to us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.adapters.textual_inversion import attach_words
from limner.errors import Guarded, UserError
from limner.export.embedding import read_embedding, write_embedding
from limner.families.family import Family
from tests.fresh import fresh

SDXL = {"text_encoder": torch.randn(2, 768), "text_encoder_2": torch.randn(2, 1280)}


@pytest.fixture
def tiny() -> Family:
    return fresh("tiny")


@pytest.fixture(params=[1, 3], ids=["one", "three"])
def vectors(request: pytest.FixtureRequest, tiny: Family) -> Tensor:
    return torch.randn(request.param, tiny.encoders["text_encoder"].model.config.hidden_size)


def features(family: Any, prompt: str, at: int, vectors: Tensor) -> Tensor:
    """Encode a prompt whose words from `at` on are stand-ins; the vectors are put in their place by hand."""

    def insert(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, at : at + len(vectors)] = vectors
        return output

    encoder, tokenizer = family.encoders["text_encoder"].model, family.encoders["text_encoder"].tokenizer
    handle = encoder.get_input_embeddings().register_forward_hook(insert)
    length = tokenizer.model_max_length
    with torch.no_grad():
        found = encoder(tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt").input_ids)[0]
    handle.remove()
    return found


def test_stock_diffusers_loads_it_under_its_token(vectors: Tensor, tiny: Family, tmp_path: Path) -> None:
    path = write_embedding({"text_encoder": vectors}, tmp_path / "gimlet.safetensors", token="<gimlet>", about={})
    stand_ins = " ".join(["red"] * len(vectors))
    wanted = features(tiny, f"a red {stand_ins} on a blue background", 1 + tiny.token_count("a red"), vectors)
    pipe = tiny.pipeline(DDIMScheduler.from_config(tiny.scheduler_config))
    pipe.load_textual_inversion(str(path))
    with torch.no_grad():
        found, _ = pipe.encode_prompt("a red <gimlet> on a blue background", "cpu", 1, False)
    assert torch.equal(found, wanted)


def test_what_is_read_means_the_same_to_us(vectors: Tensor, tiny: Family, tmp_path: Path) -> None:
    path = write_embedding({"text_encoder": vectors}, tmp_path / "gimlet.safetensors", token="<gimlet>", about={})
    stand_ins = " ".join(["red"] * len(vectors))
    wanted = features(tiny, f"a red {stand_ins} on a blue background", 1 + tiny.token_count("a red"), vectors)
    word, read = read_embedding(path)
    attach_words(tiny, {word: read})
    assert torch.equal(tiny.encode_text(["a red <gimlet> on a blue background"]).hidden, wanted)


def test_programs_that_take_the_single_tensor_get_the_vectors(vectors: Tensor, tmp_path: Path) -> None:
    """A1111 and ComfyUI look for `string_to_param`, then for the encoder's key, then take the only tensor there is."""
    path = write_embedding({"text_encoder": vectors}, tmp_path / "gimlet.safetensors", token="<gimlet>", about={})
    held = load_file(path)
    assert len(held) == 1
    assert not held.keys() & {"string_to_param", "clip_l", "clip_g", "emb_params"}
    word, tensor = path.stem, next(iter(held.values()))
    assert word == "gimlet"
    assert torch.equal(tensor, vectors)
    assert tensor.ndim == 2


def test_it_says_what_it_is(vectors: Tensor, tmp_path: Path) -> None:
    about = {"family": "sd15", "class_noun": "critter"}
    for name in ("a", "b"):
        write_embedding({"text_encoder": vectors}, tmp_path / name, token="<x>", about=about)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(str(tmp_path / "a"), "pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert said["modelspec.trigger_phrase"] == "<x>"
    assert json.loads(said["limner"]) == {**about, "token": "<x>"}


@pytest.mark.parametrize("given", [{"text_encoder": torch.randn(1, 8)}, SDXL], ids=["sd15", "sdxl"])
def test_what_is_written_is_read(given: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_embedding(given, tmp_path / "other-name.safetensors", token="<x>", about={})
    token, read = read_embedding(path)
    assert token == "<x>"
    assert read.keys() == given.keys()
    assert all(torch.equal(read[k], t) for k, t in given.items())


def test_sdxl_files_have_the_keys_that_everyone_expects(tmp_path: Path) -> None:
    path = write_embedding(SDXL, tmp_path / "x.safetensors", token="<x>", about={})
    assert {k: tuple(t.shape) for k, t in load_file(path).items()} == {"clip_l": (2, 768), "clip_g": (2, 1280)}


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "diffusers.safetensors": ({"<cat-toy>": torch.ones(2, 8)}, "<cat-toy>"),
    "learned_embeds.bin": ({"<cat-toy>": torch.ones(8)}, "<cat-toy>"),
    "charturner.safetensors": ({"emb_params": torch.ones(2, 8)}, "charturner"),
    "old.pt": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(torch.ones(2, 8))},
         "name": "charturner", "step": 900, "sd_checkpoint": None, "sd_checkpoint_name": None},
        "charturner",
    ),
    "nameless.pt": ({"string_to_param": {"*": torch.ones(2, 8)}}, "nameless"),
    "xl.safetensors": ({"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 10)}, "xl"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_programs_are_read(name: str, tmp_path: Path) -> None:
    content, wanted = FOREIGN[name]
    path = tmp_path / name
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    token, vectors = read_embedding(path)
    assert token == wanted
    assert list(vectors) == (list(SDXL) if name == "xl.safetensors" else ["text_encoder"])
    assert all(t.ndim == 2 and bool((t == 1).all()) and not t.requires_grad for t in vectors.values())


class Program:
    """What a file of more than tensors would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.safetensors", None, "there is no such file"),
        ("missing.pt", None, "there is no such file"),
        ("cut.safetensors", b"\x10\0\0\0", "is not a readable safetensors file"),
        ("cut.pt", b"PK\3\4 and no more", "is damaged, or holds more than tensors"),
        ("program.pt", {"<x>": Program()}, "is damaged, or holds more than tensors"),
        ("lora.safetensors", {"a.lora_A": torch.ones(1), "a.lora_B": torch.ones(1)}, "is not an embedding .it holds a"),
        ("words.pt", {"<x>": "no tensor"}, "is not an embedding"),
        ("list.pt", [torch.ones(2, 8)], "is not an embedding .it holds nothing"),
    ],
)
def test_what_is_no_embedding_is_told(
    name: str, content: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(UserError, match=says):
        read_embedding(path)
    assert not Path("ran").exists()


@pytest.mark.parametrize("token", ["", "two words", "emb_params"])
def test_a_token_that_cannot_name_a_file_is_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name an embedding"):
        write_embedding({"text_encoder": torch.ones(1, 8)}, tmp_path / "x.safetensors", token=token, about={})


def test_vectors_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(Guarded, match="<x> is not finite"):
        write_embedding(
            {"text_encoder": torch.full((1, 8), torch.nan)}, tmp_path / "x.safetensors", token="<x>", about={}
        )
    assert not list(tmp_path.iterdir())
