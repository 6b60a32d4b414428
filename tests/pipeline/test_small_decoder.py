"""A small decoder shows previews and live pictures as diffusers' AutoencoderTiny does, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from limner import train
from limner.errors import UserError
from limner.families.decoder import SETTING, check_decoder, load_decoder
from limner.families.load import load
from limner.families.recognise import recognise
from limner.families.source import ASSETS
from limner.generate.draw import MANIFEST, Sampling, decode_soundly
from limner.generate.faults import is_spoilt
from limner.generate.warm import Warm
from limner.live import live
from limner.rundir import RunDir, read_json
from limner.seeds import seed_of
from tests.random_base import make_small_decoder

CRITTER = ASSETS / "demo" / "critter"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small decoder for the random bases."""
    return make_small_decoder(tmp_path_factory.mktemp("decoders") / "small")


@pytest.fixture(scope="module")
def run(random_base: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train for two steps with one preview and one validation."""
    settings = {"base": str(random_base), "steps": 2, "batch": 1, "prior.enabled": False, "preview.every_steps": 2,
                "preview.images": 1, "preview.decoder": str(small), "generation.num_inference_steps": 2,
                "generation.guidance_scale": 1}  # fmt: skip
    return train(CRITTER, recipe="demo", settings=settings, run=tmp_path_factory.mktemp("small") / "run")


@pytest.mark.parametrize("kind", ["sd15", "xl"])
def test_it_draws_what_a_stock_pipeline_draws_with_it(kind: str, small: Path, request: pytest.FixtureRequest) -> None:
    from diffusers import AutoencoderTiny, DiffusionPipeline, LCMScheduler

    folder = request.getfixturevalue(f"random_{kind}")
    family = load(str(folder), dtype=torch.float32, device="cpu")
    decoder = load_decoder(str(small), recognise(str(folder)), dtype=torch.float32, device="cpu")
    sampling = Sampling(scheduler="lcm", num_inference_steps=3, guidance_scale=1)
    ours = Warm(family, sampling, 64, decoder).pixels("a red critter", 3)
    pipe: Any = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.vae = AutoencoderTiny.from_pretrained(small)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3))
    theirs = pipe("a red critter", latents=noise, num_inference_steps=3, guidance_scale=1, output_type="pt",
                  generator=torch.Generator().manual_seed(seed_of("steps", 3))).images  # fmt: skip
    assert not is_spoilt(ours[0])
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=1e-5, rtol=0)


def test_live_pictures_and_previews_are_its_own(run: RunDir, small: Path) -> None:
    file = run.previews / "step-000002"
    manifest = read_json(file / MANIFEST)
    assert manifest["decoder"] == str(small)
    (shown,) = manifest["images"]
    preview = np.asarray(Image.open(file / shown["file"]), int)
    drawn = {}
    for name in (str(small), ""):
        with live(run.path, settings={SETTING: name}) as warm:
            drawn[name] = np.asarray(warm.picture(shown["prompt"], shown["seed"]), int)
    assert np.abs(drawn[str(small)] - preview).max() <= 1  # folded in it rounds otherwise
    assert np.abs(drawn[""] - preview).max() > 5


def test_nothing_else_is_decoded_by_it(
    run: RunDir, random_base: Path, tmp_path: Path, run_limner: Callable[..., Any]
) -> None:
    more = ("--prompt", "a critter", "--seeds", "5,6", "--out", tmp_path / "drawn", "--json")
    code, _, err = run_limner("generate", random_base, f"{SETTING}=x", *more)
    assert code == 2
    assert "has no effect on pictures that stay: the base's VAE decodes them. Leave it out, or draw with --live" in err
    assert run_limner("generate", run.path, *more)[0] == 0
    manifest = read_json(tmp_path / "drawn" / MANIFEST)
    assert "decoder" not in manifest
    shown = manifest["images"][0]
    with live(run.path, settings={SETTING: ""}) as by_the_vae:
        expected = np.asarray(by_the_vae.picture(shown["prompt"], shown["seed"]), int)
    assert np.abs(expected - np.asarray(Image.open(tmp_path / "drawn" / shown["file"]), int)).max() <= 1


def test_it_is_said_what_decodes(run: RunDir, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from limner.watch import Watch

    said: list[str] = []
    watch = Watch()
    monkeypatch.setattr(watch, "say", said.append)
    with live(run.path, watch=watch):
        pass
    assert f"decodes with {small}, not with the base's VAE" in said


def test_a_picture_of_one_colour_is_decoded_by_the_vae(random_base: Path, small: Path) -> None:
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    decoder = load_decoder(str(small), recognise(str(random_base)), dtype=torch.float32, device="cpu")
    latents = torch.randn(1, 4, 16, 16)
    assert torch.equal(decode_soundly(family, latents, decoder), decoder.decode(latents))
    for weight in decoder.module.parameters():
        weight.zero_()
    assert torch.equal(decode_soundly(family, latents, decoder), family.decode(latents))


def test_several_large_pictures_are_decoded_one_by_one(random_base: Path, small: Path) -> None:
    decoder = load_decoder(str(small), recognise(str(random_base)), dtype=torch.float32, device="cpu")
    seen: list[int] = []
    decoder.module.register_forward_hook(lambda module, given, made: seen.append(len(given[0])))
    latents = torch.randn(3, 4, 128, 128)
    pixels = decoder.decode(latents)
    assert (seen, pixels.shape) == ([1, 1, 1], (3, 3, 512, 512))
    assert pixels.abs().max() <= 1


@pytest.mark.parametrize(
    ("base", "name", "says"),
    [
        ("sdxl", "madebyollin/taesd", "is for the latents of SD 1.x, and base=.* is SDXL. Use .*madebyollin/taesdxl"),
        ("sd15", "madebyollin/taesdxl", "is for the latents of SDXL, and base=.* is SD 1.x. Use .*madebyollin/taesd"),
        ("tiny", "madebyollin/taesd", r"is for the latents of SD 1.x, and base=.* has others \(4 channels, 4 px\)"),
        ("sd15", "madebyollin/taesd", "nothing of it.*switched off.* Put its config.json and diffusion_pytorch_model"),
    ],
)  # fmt: skip
def test_the_published_ones_are_for_one_family(base: str, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_decoder(name, recognise(str(ASSETS / base)))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("weights", "decoder'?: does not fit its configuration: 1 weights are missing"),
        ("blocks", "config.json: makes no AutoencoderTiny"),
        ("encoder", "has no decoder"),
        ("pickled", "has no .safetensors file. Put diffusion_pytorch_model.safetensors into"),
        ("torn", "is not a readable .safetensors file"),
        ("larger", "is for latents of 4 channels and 8 px, and those of base=.* have 4 and 4 px"),
        ("wider", "is for latents of 16 channels and 4 px"),
    ],
)
def test_what_is_no_decoder_is_said_before_the_base_is_loaded(
    spoil: str, says: str, random_base: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "decoder"
    if spoil in ("larger", "wider"):
        make_small_decoder(folder, **({"blocks": 4} if spoil == "larger" else {"channels": 16}))
    else:
        shutil.copytree(small, folder)
    config, file = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if spoil == "weights":
        save_file({name: one for name, one in weights.items() if name != "decoder.layers.0.bias"}, file)
    elif spoil == "blocks":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_decoder_blocks": [1]}))
    elif spoil == "encoder":
        save_file({name: one for name, one in weights.items() if name.startswith("encoder.")}, file)
    elif spoil == "pickled":
        file.rename(file.with_suffix(".bin"))
    elif spoil == "torn":
        file.write_bytes(file.read_bytes()[:100])
    monkeypatch.setattr("limner.opening.load_base", lambda *args, **more: pytest.fail("the base was loaded"))
    with pytest.raises(UserError, match=says), live(str(random_base), settings={SETTING: str(folder)}):
        pass
