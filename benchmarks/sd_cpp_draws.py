"""Does stable-diffusion.cpp draw from Limner's files what Limner meant?

`pip install stable-diffusion-cpp-python && python -m benchmarks.sd_cpp_draws BASE [--out FILE]`

BASE is a full-size SD 1.5 (random weights will do; the program knows no smaller one). Limner writes it as a
single-file checkpoint, a random LoRA by kohya's and by diffusers' names, and the checkpoint with that LoRA merged. The
program draws with each: the base with a LoRA's file must be the merged checkpoint's picture, and not the base's own.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_diffusion_cpp import StableDiffusion

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.export.diffusers_lora import write_lora
from limner.export.kohya_lora import write_kohya
from limner.export.lora_files import read_any_lora
from limner.export.single_file import write_single_file
from limner.families.load import load
from limner.machine import hardware, versions
from limner.rundir import write_json

PROMPT, SIDE, STEPS = "a photo of a dog", 128, 2
KOHYA, DIFFUSERS = "by_kohya", "by_diffusers"
SIZE = 0.08
"""Standard deviation of the random factors: a change that shows and does not drown the base."""


def main() -> None:
    """Parse the command line, write the files, draw, print what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sd_cpp_draws", description=__doc__)
    parser.add_argument("base", help="a full-size SD 1.5: a diffusers folder or a single file")
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        write_files(given.base, Path(passing))
        plain, merged = Path(passing) / "base.safetensors", Path(passing) / "merged.safetensors"
        pictures = {"base": drawn(plain, passing), "merged": drawn(merged, passing)}
        pictures |= {name: drawn(plain, passing, lora=name) for name in (KOHYA, DIFFUSERS)}
    apart = {name: float(np.abs(pictures[name] - pictures["merged"]).mean()) for name in ("base", KOHYA, DIFFUSERS)}
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(), "machine": hardware(), "versions": versions(),
        "command": "python -m benchmarks.sd_cpp_draws FULL-SIZE-SD15-WITH-RANDOM-WEIGHTS",
        "program": f"stable-diffusion-cpp-python {version('stable_diffusion_cpp_python')}", "side_px": SIDE,
        "steps": STEPS, "mean_difference_to_merged_of_255": apart,
        "spread_of_the_base_s_picture": float(pictures["base"].std()),
    }  # fmt: skip
    print(result)
    if given.out:
        write_json(given.out, result)


def write_files(base: str, folder: Path) -> None:
    """Write the base, the LoRA in both layouts, and the base with it merged."""
    family = load(base, dtype=torch.float32, device="cpu")
    about = {**family.facts, "token": "sks"}
    write_single_file(family, folder / "base.safetensors", dtype=torch.float16, about=about)
    adapter = LoRA(rank=4, targets="attention", text_encoder=True).attach(family, [SlotSettings(seed=0)])
    draws = torch.Generator().manual_seed(0)
    state = {name: t if t.ndim == 0 else SIZE * torch.randn(t.shape, generator=draws)
             for name, t in adapter.state_dict().items()}  # fmt: skip
    adapter.load_state_dict(state)
    write_lora(state, folder / f"{DIFFUSERS}.safetensors", about)
    write_kohya(read_any_lora(folder / f"{DIFFUSERS}.safetensors").layers, folder / f"{KOHYA}.safetensors", about)
    adapter.merge()
    write_single_file(family, folder / "merged.safetensors", dtype=torch.float16, about=about)


def drawn(checkpoint: Path, loras: str, *, lora: str = "") -> np.ndarray:
    """Return the picture that the program draws, in [0, 255]; with a LoRA's file at strength 1 where one is named."""
    program = StableDiffusion(model_path=str(checkpoint), lora_model_dir=loras, verbose=False, vae_decode_only=True)
    words = f"{PROMPT}<lora:{lora}:1>" if lora else PROMPT
    (picture,) = program.generate_image(
        prompt=words, width=SIDE, height=SIDE, sample_steps=STEPS, seed=7, cfg_scale=1.0, sample_method="euler"
    )
    return np.asarray(picture.convert("RGB"), np.float64)


if __name__ == "__main__":
    main()
