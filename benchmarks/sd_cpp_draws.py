"""Does stable-diffusion.cpp draw Limner's own picture from Limner's files?

`pip install stable-diffusion-cpp-python && python -m benchmarks.sd_cpp_draws BASE [--out FILE] [--pictures DIR]`

BASE is a full-size SD 1.5 (random weights will do; the program knows no smaller one). Limner writes it as a
single-file checkpoint, a random LoRA by kohya's and by diffusers' names, and the checkpoint with that LoRA merged.
Both draw with each, by Euler's method on the schedule that both have (`linspace` to diffusers, `discrete` to the
program, whose timesteps are whole numbers for 10 steps), with guidance. They begin with the same noise: with
`rng_type="cpu"` the program's noise of a seed is torch's. Of the base two parts of the way are compared too: the VAE
alone, and two steps without guidance. Another seed, another prompt, and the base without its LoRA show what a
difference is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.export.diffusers_lora import write_lora
from limner.export.kohya_lora import write_kohya
from limner.export.lora_files import read_any_lora
from limner.export.single_file import write_single_file
from limner.families.family import Family
from limner.families.load import load
from limner.generate.draw import Request, Sampling, decode_soundly, draw_batch
from limner.generate.faults import to_images
from limner.machine import hardware, versions
from limner.rundir import write_json

PROMPT, SIDE, STEPS, GUIDANCE, SEED = "a photo of a dog", 128, 10, 5.0, 7
BASE, MERGED, KOHYA, DIFFUSERS = "base", "merged", "by_kohya", "by_diffusers"
DECODED, TWO, OTHER_SEED, OTHER_PROMPT = "VAE alone", "two steps", "another seed", "another prompt"
SIZE = 0.08
"""Standard deviation of the random factors: a change that shows and does not drown the base."""
TOLERANCE = {"mean": 0.1, "largest": 2.0}
"""How far, of 255, the program's picture may be from Limner's in float32: its convolutions compute in float16."""
Picture = NDArray[np.float64]


def main() -> None:
    """Parse the command line, write the files, draw, print what came out; 1 where a picture is not the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sd_cpp_draws", description=__doc__)
    parser.add_argument("base", help="a full-size SD 1.5: a diffusers folder or a single file")
    parser.add_argument("--out", type=Path, help="write the result here too")
    parser.add_argument("--pictures", type=Path, help="keep the pictures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing)
        write_files(given.base, folder)
        theirs, ours = drawn_by_program(folder), drawn_by_limner(folder)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(), "machine": hardware(), "versions": versions(),
        "command": "python -m benchmarks.sd_cpp_draws FULL-SIZE-SD15-WITH-RANDOM-WEIGHTS",
        "program": f"stable-diffusion-cpp-python {version('stable_diffusion_cpp_python')}", "side_px": SIDE,
        "steps": STEPS, "guidance_scale": GUIDANCE, "tolerance_of_255": TOLERANCE,
        "limner_and_program_of_255": {name: apart(ours[name], theirs[name]) for name in ours},
        "what_a_difference_is_of_255": {
            "without the LoRA": apart(theirs[BASE], ours[KOHYA]),
            **{name: apart(theirs[name], ours[BASE]) for name in (OTHER_SEED, OTHER_PROMPT)},
        },
        "program_s_picture_to_its_merged_one_of_255": {
            name: apart(theirs[name], theirs[MERGED]) for name in (BASE, KOHYA, DIFFUSERS)
        },
        "spread_of_limner_s_pictures": {name: round(float(one.std()), 3) for name, one in ours.items()},
    }  # fmt: skip
    for name, value in result.items():
        print(f"{name}: {value}")
    if given.pictures:
        keep(given.pictures, {"limner": ours, "program": theirs})
    if given.out:
        write_json(given.out, result)
    rows = result["limner_and_program_of_255"].values()
    sys.exit(any(row[name] > most for row in rows for name, most in TOLERANCE.items()))


def write_files(base: str, folder: Path) -> None:
    """Write the base, the LoRA in both layouts, and the base with it merged."""
    family = load(base, dtype=torch.float32, device="cpu")
    about = {**family.facts, "token": "sks"}
    write_single_file(family, folder / f"{BASE}.safetensors", dtype=torch.float16, about=about)
    adapter = LoRA(rank=4, targets="attention", text_encoder=True).attach(family, [SlotSettings(seed=0)])
    draws = torch.Generator().manual_seed(0)
    state = {name: t if t.ndim == 0 else SIZE * torch.randn(t.shape, generator=draws)
             for name, t in adapter.state_dict().items()}  # fmt: skip
    adapter.load_state_dict(state)
    write_lora(state, folder / f"{DIFFUSERS}.safetensors", about)
    write_kohya(read_any_lora(folder / f"{DIFFUSERS}.safetensors").layers, folder / f"{KOHYA}.safetensors", about)
    adapter.merge()
    write_single_file(family, folder / f"{MERGED}.safetensors", dtype=torch.float16, about=about)


def drawn_by_program(folder: Path) -> dict[str, Picture]:
    """Return what stable-diffusion.cpp draws from the files."""
    from stable_diffusion_cpp import StableDiffusion

    def draw(checkpoint: str, lora: str = "", prompt: str = PROMPT, **how: Any) -> Picture:
        program = StableDiffusion(
            model_path=str(folder / f"{checkpoint}.safetensors"), lora_model_dir=str(folder), rng_type="cpu",
            sampler_rng_type="cpu", verbose=False, vae_decode_only=True,
        )  # fmt: skip
        usual = {"sample_steps": STEPS, "seed": SEED, "cfg_scale": GUIDANCE, "scheduler": "discrete"}
        usual |= {"sample_method": "euler", "width": SIDE, "height": SIDE}
        words = f"{prompt}<lora:{lora}:1>" if lora else prompt
        (picture,) = program.generate_image(prompt=words, **{**usual, **how})
        return np.asarray(picture.convert("RGB"), np.float64)

    return {
        BASE: draw(BASE), MERGED: draw(MERGED), KOHYA: draw(BASE, KOHYA), DIFFUSERS: draw(BASE, DIFFUSERS),
        OTHER_SEED: draw(BASE, seed=SEED + 1), OTHER_PROMPT: draw(BASE, prompt="a castle in the snow"),
        DECODED: draw(BASE, sigmas="1,1", sample_steps=1),  # from noise level 1 to 1: the noise itself is decoded
        TWO: draw(BASE, sample_steps=2, cfg_scale=1.0),
    }  # fmt: skip


def drawn_by_limner(folder: Path) -> dict[str, Picture]:
    """Return what Limner draws from the same files in float32, by its own names of the same pictures."""
    pictures: dict[str, Picture] = {}
    family = load(str(folder / f"{BASE}.safetensors"), dtype=torch.float32, device="cpu")
    family.scheduler_config |= {"timestep_spacing": "linspace"}
    side = SIDE // family.pixels_per_latent
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(SEED))
    pictures[DECODED] = as_numbers(decode_soundly(family, noise))
    pictures[TWO] = drawn(family, num_inference_steps=2, guidance_scale=1.0)
    pictures[BASE] = drawn(family)
    adapter = read_any_lora(folder / f"{KOHYA}.safetensors").attach(family.modules)
    pictures[KOHYA] = drawn(family)
    adapter.detach()
    return pictures


def drawn(family: Family, **how: Any) -> Picture:
    """Return the picture that Limner draws, in [0, 255]."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **how}
    sampling = Sampling.model_validate({"scheduler": "euler", **settings})
    _, pixels = draw_batch(family, [Request("free", PROMPT, PROMPT, 0, 0, SEED)], sampling, SIDE, lambda _: None)
    return as_numbers(pixels)


def as_numbers(pixels: torch.Tensor) -> Picture:
    """Return the first picture of a batch, in [0, 255], rounded as a file of it is."""
    return np.asarray(next(iter(to_images(pixels))), np.float64)


def apart(one: Picture, other: Picture) -> dict[str, float]:
    """Return the mean and the largest absolute difference of two pictures in [0, 255]."""
    difference = np.abs(one - other)
    return {"mean": round(float(difference.mean()), 4), "largest": float(difference.max())}


def keep(folder: Path, pictures: Mapping[str, Mapping[str, Picture]]) -> None:
    """Write every picture as PNG, named by who drew it and from what."""
    folder.mkdir(parents=True, exist_ok=True)
    for who, drawn_by in pictures.items():
        for name, picture in drawn_by.items():
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{who} {name}.png".replace(" ", "-"))


if __name__ == "__main__":
    main()
