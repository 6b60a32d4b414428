"""Where a base is found: this machine, the hub's cache, the hub; offline, one line says what to put where."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from limner.errors import UserError
from limner.families import source
from limner.families.load import load, native_resolution
from limner.families.recognise import recognise

NAME = "somebody/dog-diffusion"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty hub cache that the hub's library looks in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def cached(hub_cache: Path, random_base: Path) -> Path:
    """Return the snapshot folder of a base in the hub's cache, laid out as the hub's library does."""
    repository = hub_cache / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    shutil.copytree(random_base, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(REVISION)
    return snapshot


def test_the_hubs_cache_is_enough(cached: Path, random_base: Path) -> None:
    assert recognise(NAME).path == cached
    assert native_resolution(NAME) == 64
    family = load(NAME, dtype=torch.float32, device="cpu")
    assert family.name == NAME
    assert family.identity == load(str(random_base), dtype=torch.float32, device="cpu").identity


def test_a_folder_of_that_name_goes_before_the_hub(
    cached: Path, tmp_path: Path, random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(random_base, tmp_path / NAME)
    assert recognise(NAME).path == Path(NAME)


def test_offline_and_not_cached_says_where_it_looked_and_what_to_put_where(hub_cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        native_resolution(NAME)
    assert str(caught.value) == (
        f"base={NAME!r}: is not on this machine (no folder ./{NAME}, nothing in the hub's cache {hub_cache}), and the "
        "hub is switched off (HF_HUB_OFFLINE=1). Copy its diffusers folder (with model_index.json) or its .safetensors "
        "file to this machine and give the path, or run once with a network."
    )


def test_offline_and_half_cached_names_the_file(cached: Path) -> None:
    (cached / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert recognise(NAME).family == "sd15"
    with pytest.raises(UserError) as caught:
        load(NAME, dtype=torch.float32, device="cpu")
    lacking = "unet/diffusion_pytorch_model.safetensors"
    assert str(caught.value) == (
        f"base={NAME!r}: its copy in the hub's cache lacks {lacking}, and the hub is switched off (HF_HUB_OFFLINE=1). "
        f"Put the file at {cached / lacking}, or run once with a network."
    )


def test_an_incomplete_folder_names_what_it_lacks(random_base: Path, tmp_path: Path) -> None:
    shutil.copytree(random_base, tmp_path / "base")
    shutil.rmtree(tmp_path / "base/tokenizer")
    with pytest.raises(UserError, match=r"tokenizer/vocab.json is missing"):
        load(str(tmp_path / "base"), dtype=torch.float32, device="cpu")
    (tmp_path / "base/vae/config.json").unlink()
    with pytest.raises(UserError, match=r"vae/config.json is missing"):
        recognise(str(tmp_path / "base"))


@pytest.mark.parametrize("name", ["./nowhere", "nowhere.safetensors", "a/model.ckpt", "a/b/c"])
def test_what_is_no_hub_name_is_never_looked_for_there(name: str) -> None:
    with pytest.raises(UserError, match="there is no such folder or file, and it is no hub name"):
        recognise(name)


def test_one_set_of_weights_is_downloaded_and_no_other() -> None:
    stem, listed = "diffusion_pytorch_model", ["model_index.json", "unet/config.json", "v1-5-pruned.ckpt"]
    listed += [f"{part}/{stem}{end}" for part in ("unet", "vae") for end in (".safetensors", ".fp16.safetensors")]
    listed += ["text_encoder/model.safetensors.index.json", "text_encoder/model-00001-of-00002.safetensors"]
    wanted = list(source._wanted(listed, weights=True))
    assert [name for name in wanted if name.startswith(("unet", "vae", "text_encoder")) and "config" not in name] == [
        f"unet/{stem}.safetensors", f"vae/{stem}.safetensors",
        "text_encoder/model.safetensors.index.json", "text_encoder/*-of-*",
    ]  # fmt: skip
    assert not [name for name in source._wanted(listed, weights=False) if "safetensors" in name]
