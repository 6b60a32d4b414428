"""Stage `xl_refiner`: a smaller UNet for the last quarter of the noise, told how good the picture is to be."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from pretraining import dataset, unet, views, xl, xl_export, xl_text
from pretraining.progress import Clock, device, set_threads

TIMESTEPS = 250  # of 1000: the base hands over at 200
PEAK_RATE, SLOWEST = 5e-4, 0.995
# Attention at the lowest level alone; what is left has the names and shapes of the base's UNet.
SMALLER = {
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}


def run(work: Path, minutes: float = 3, *, base: Path) -> None:
    """Train for `minutes` in all, beginning with the XL UNet's weights; ends with what base=tiny-xl-refiner finds."""
    set_threads()
    folder = xl_text.folder_of(work)
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
    seen = views.load(folder / "scored.pt", dataset.load(folder, "train"), vae, views.scored)
    captions = torch.load(folder / "captions.pt", weights_only=True, mmap=True)
    known, captions["hidden"] = captions["hidden"], captions["hidden"][..., -xl_text.WIDTH :]
    torch.manual_seed(0)
    network = xl.build(base, xl_text.WIDTH, seen.time_ids.shape[-1], **SMALLER)
    clock = Clock(folder / "refiner.pt", minutes)
    start = {}
    if not clock.state:
        fit = xl.fitted(known[:2000], captions["hidden"][:2000])
        taught = torch.load(folder / "unet.pt", map_location="cpu", weights_only=True)["state"]["ema"]
        start = xl.starting_weights(network, taught, fit)
    network.to(device(), torch.bfloat16).train()
    draw = xl.drawing(seen, captions, torch.ones(1))  # to the refiner no prompt is the text ""
    alphas = unet.scheduler().alphas_cumprod[:TIMESTEPS].to(device())
    unet.train(network, clock, draw, alphas, start=start, peak=PEAK_RATE, slowest=SLOWEST)
    xl_export.write("tiny-xl-refiner", work, base, network, clock)
