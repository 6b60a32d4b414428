"""Stage `decoder`: go on training the decoder alone; latents, and so the UNet, stay valid."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from pretraining import dataset, unet
from pretraining.progress import Clock, autocast, device, set_rate, set_threads, warm_cosine
from pretraining.vae import psnr, reconstruction_loss

BATCH, PEAK_RATE, EMA = 8, 8e-4, 0.998


def _trained(vae: AutoencoderKL) -> list[torch.nn.Parameter]:
    return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]


def average_of(work: Path) -> AutoencoderKL:
    """Return the autoencoder of stage `vae` with the best decoder so far."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    if (work / "decoder.pt").exists():
        saved = torch.load(work / "decoder.pt", map_location="cpu", weights_only=True)
        for weight, value in zip(_trained(vae), saved["state"]["ema"], strict=True):
            weight.data.copy_(value)
    return vae


def run(work: Path, minutes: float = 25) -> None:
    """Train for `minutes` in all on whole pictures and their cached latents."""
    set_threads()
    pictures, held_out = dataset.load(work, "train"), dataset.load(work, "held_out")
    cache = unet.load_cache(work, pictures)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device()).train()
    average = average_of(work).to(device()).requires_grad_(False)
    fast, slow = _trained(vae), _trained(average)
    optimizer = torch.optim.AdamW(fast, PEAK_RATE, (0.9, 0.99), weight_decay=0.0)
    clock = Clock(work / "decoder.pt", minutes)
    if clock.state:
        for weight, value in zip(fast, clock.state["weights"], strict=True):
            weight.data.copy_(value)
        optimizer.load_state_dict(clock.state["optimizer"])
    torch.manual_seed(clock.step)
    while not clock.over:
        set_rate(optimizer, warm_cosine(clock, PEAK_RATE))
        chosen = torch.randint(len(pictures), (BATCH,)).sort().values
        pixels = pictures.batch(chosen).to(device())
        mean = cache.latents[chosen].float()
        latents = (mean + cache.deviation[:, None, None] * torch.randn_like(mean)).to(device())
        with autocast():
            made = vae.decode(latents).sample
        loss = reconstruction_loss(made.float(), pixels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fast, 1.0)
        optimizer.step()
        decay = min(EMA, (1 + clock.step) / (10 + clock.step))
        with torch.no_grad():
            torch._foreach_lerp_(slow, [w.detach() for w in fast], 1 - decay)
        if clock.tick(BATCH):
            clock.save({"weights": [w.detach() for w in fast], "ema": slow, "optimizer": optimizer.state_dict()})
            clock.log(loss=loss.item(), psnr=psnr(average, held_out, 64).mean().item())
            clock.pause()
