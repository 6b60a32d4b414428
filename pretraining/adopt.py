"""Stage `adopt`: put the committed weights into the working folder, to go on training the UNet."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

from pretraining.export import ASSETS


def run(work: Path, minutes: float | None = None) -> None:
    """Copy the committed parts in float32; `unet` then starts from them. `minutes` is unused."""
    if (work / "unet.pt").exists():
        raise SystemExit(f"{work}/unet.pt exists: `unet` resumes from it. Use an empty --work to adopt.")
    shutil.copytree(ASSETS / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(ASSETS / "unet", work / "unet_start", dirs_exist_ok=True)
    vae = AutoencoderKL.from_pretrained(ASSETS / "vae", dtype=torch.float32)
    for name in ("vae", "vae_start"):  # the UNet goes on with the one, the stage `vae` begins with the other
        vae.save_pretrained(work / name)
    encoder = CLIPModel.from_pretrained(ASSETS / "image_text_encoder", dtype=torch.float32)
    encoder.save_pretrained(work / "image_text_encoder")
