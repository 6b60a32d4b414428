"""Stage `vae`: train the autoencoder (f4, 16 x 16 x 4 latents) and whiten its latents exactly."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pretraining import dataset
from pretraining.progress import Clock, autocast, device, set_rate, set_threads, warm_cosine

BATCH, CROP_PX, PEAK_RATE, KL_WEIGHT = 16, 32, 1.5e-3, 1e-6
GOING_ON_RATE = 8e-4  # for weights that are trained already
FULL_SIZE_FROM = 0.85  # fraction of the time after which whole pictures are shown
EMA = 0.998


def build() -> AutoencoderKL:
    """Return the untrained autoencoder; its posterior starts narrow."""
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        scaling_factor=1.0,
    )
    torch.nn.init.zeros_(vae.quant_conv.weight[4:])
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6.0
    return vae


def reconstruction_loss(made: Tensor, pixels: Tensor) -> Tensor:
    """Return L1 + 2 L2 + half the L1 of the picture gradients; `pixels` in [-1, 1]."""
    error = made - pixels
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * (across + down)


def psnr(vae: AutoencoderKL, pictures: dataset.Pictures, count: int = 128) -> Tensor:
    """Return the PSNR in dB of each of the first `count` pictures, from the posterior means."""
    values = []
    for start in range(0, count, 32):
        pixels = pictures.batch(range(start, min(count, start + 32))).to(device())
        with torch.no_grad():
            made = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((made - pixels) / 2).square().mean((1, 2, 3))
        values.append(-10 * mse.log10())
    return torch.cat(values).cpu()


def _crops(pixels: Tensor, fraction: float) -> Tensor:
    """Return flipped crops, or whole pictures (fewer of them) near the end."""
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(-1)
    if fraction > FULL_SIZE_FROM:
        return pixels[: BATCH // 2]
    # Whole multiples of 4 px keep the crops on the grid of the latents.
    y, x = (torch.randint(0, (64 - CROP_PX) // 4 + 1, (2,)) * 4).tolist()
    return pixels[..., y : y + CROP_PX, x : x + CROP_PX]


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: dataset.Pictures) -> None:
    """Fold the whitening of the latents into the two 1 x 1 convolutions; reconstructions stay."""
    moments = []
    for start in range(0, min(2048, len(pictures)), 64):
        pixels = pictures.batch(range(start, start + 64)).to(device())
        moments.append(vae.quant_conv(vae.encoder(pixels)))
    mean, log_variance = torch.cat(moments).double().chunk(2, 1)
    mean = mean.movedim(1, -1).reshape(-1, 4)
    centre, covariance = mean.mean(0), mean.T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    to_white = vectors @ values.rsqrt().diag() @ vectors.T
    variance = to_white.square() @ log_variance.exp().mean((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:4, :, 0, 0].double(), quant.bias[:4].double()
    quant.weight.zero_()
    quant.weight[:4, :, 0, 0] = (to_white @ weight).float()
    quant.bias[:4] = (to_white @ (bias - centre)).float()
    quant.bias[4:] = variance.log().float()
    weight = post.weight[:, :, 0, 0].double()
    post.bias.copy_((post.bias.double() + weight @ centre).float())
    post.weight[:, :, 0, 0] = (weight @ to_white.inverse()).float()


def run(work: Path, minutes: float = 31) -> None:
    """Train for `minutes` in all; ends with work/vae, a diffusers folder with white latents.

    It begins with the weights that stage `adopt` left in work/vae_start, where there are any.
    """
    set_threads()
    pictures, held_out = dataset.load(work, "train"), dataset.load(work, "held_out")
    torch.manual_seed(0)
    start = work / "vae_start"
    vae = (AutoencoderKL.from_pretrained(start) if start.exists() else build()).to(device()).train()
    peak = GOING_ON_RATE if start.exists() else PEAK_RATE
    average = build().to(device()).requires_grad_(False)
    average.load_state_dict(vae.state_dict())
    optimizer = torch.optim.AdamW(vae.parameters(), peak, (0.9, 0.99), weight_decay=0.0)
    clock = Clock(work / "vae.pt", minutes)
    if clock.state:
        vae.load_state_dict(clock.state["model"])
        average.load_state_dict(clock.state["ema"])
        optimizer.load_state_dict(clock.state["optimizer"])
    torch.manual_seed(clock.step)
    while not clock.over:
        set_rate(optimizer, warm_cosine(clock, peak))
        indices = torch.randint(len(pictures), (BATCH,)).sort().values
        pixels = _crops(pictures.batch(indices), clock.fraction).to(device())
        with autocast():
            posterior = vae.encode(pixels).latent_dist
            made = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(made.float(), pixels)
        kl = posterior.mean.float().square() + posterior.var.float() - posterior.logvar.float()
        optimizer.zero_grad()
        (loss + KL_WEIGHT * kl.mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA, (1 + clock.step) / (10 + clock.step))
        for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)
        if clock.tick(len(pixels)):
            clock.save({"model": vae.state_dict(), "ema": average.state_dict(),
                        "optimizer": optimizer.state_dict()})  # fmt: skip
            clock.log(loss=loss.item(), psnr=psnr(average, held_out, 64).mean().item())
            clock.pause()
    whiten(average, pictures)
    clock.log(psnr=psnr(average, held_out, 256).mean().item())
    average.save_pretrained(work / "vae")
