"""Stage `unet`: cache latents and text embeddings, then train the v-prediction UNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pretraining import dataset, whitening
from pretraining.progress import Clock, autocast, device, set_rate, set_threads, warm_cosine, write_atomically
from pretraining.text import tokenize

BATCH, PEAK_RATE, EMPTY_CAPTIONS = 32, 8e-4, 0.1
TEXT_RATE = 3.0  # what reads the text learns faster: which parts a caption names comes last of all
TOLD_RATE = 10.0  # what an XL model is told beside the text: it begins without effect, and has minutes to get one
PART_WEIGHT = 0.25  # eyes, mouth and headgear are small and learned last: each counts a quarter of the whole picture
SMALLEST_PART = 2 / 256  # of the picture: a part that is smaller counts less


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    x_0: Tensor  # (batch, 4, height, width)
    hidden: Tensor  # (batch, tokens, width), states of the captions
    added: dict[str, Tensor] | None = None  # what an XL model is told beside the text
    parts: Tensor | None = None  # (batch, 3, height, width) in [0, 1]: where the parts are that captions name


def build() -> UNet2DConditionModel:
    """Return the untrained UNet: SD 1.5's class, three levels, heads of 32 channels."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 3, 6),  # diffusers reads these as numbers of heads
        cross_attention_dim=256,
    )
    if device().type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    return unet


def scheduler() -> DDIMScheduler:
    """Return SD 1.5's schedule with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="v_prediction",
    )


@dataclass(frozen=True)
class Cache:
    """What the UNet trains on: latent means, their one posterior deviation, caption embeddings."""

    latents: Tensor  # (n, 4, 16, 16)
    deviation: Tensor  # (4,)
    embeddings: Tensor  # (captions, 32, 256), whitened, the empty caption first
    which: Tensor  # (n, variants), rows of `embeddings`
    parts: Tensor  # (n, 3, 16, 16) in [0, 1], where each named part is


@torch.no_grad()
def cache_latents(work: Path, pictures: dataset.Pictures) -> None:
    """Encode every picture once and keep the posterior means."""
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device())
    means = []
    for start in range(0, len(pictures), 64):
        pixels = pictures.batch(range(start, min(start + 64, len(pictures)))).to(device())
        with autocast():
            posterior = vae.encode(pixels).latent_dist
        means.append(posterior.mean.half().cpu())
    deviation = posterior.std[0, :, 0, 0].float().cpu()
    write_atomically(work / "latents.pt", {"latents": torch.cat(means), "deviation": deviation})


@torch.no_grad()
def cache_captions(work: Path, pictures: dataset.Pictures) -> None:
    """Encode every training caption, the empty one first."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text = CLIPModel.from_pretrained(work / "image_text_encoder").text_model.to(device())
    rows: dict[str, int] = {"": 0}
    which = []
    for record in pictures.records:
        said = [*record["captions"], record["full_caption"]]
        which.append([rows.setdefault(caption, len(rows)) for caption in said])
    captions = list(rows)
    embeddings = torch.empty(len(captions), 32, 256, dtype=torch.bfloat16)
    for start in range(0, len(captions), 256):
        ids = tokenize(tokenizer, captions[start : start + 256]).to(device())
        with autocast():
            states = text(ids).last_hidden_state
        embeddings[start : start + 256] = states.bfloat16().cpu()
    white = whitening.fit(embeddings)
    for some in embeddings.split(1024):
        some.copy_(white.apply(some.float()))
    write_atomically(work / "captions.pt", {"embeddings": embeddings, "which": torch.tensor(which), **vars(white)})


def load_cache(work: Path, pictures: dataset.Pictures) -> Cache:
    """Return the cached inputs, computing what is missing.

    After a change of the VAE or the text encoder, delete latents.pt or captions.pt.
    """
    if not (work / "latents.pt").exists():
        cache_latents(work, pictures)
    if not (work / "captions.pt").exists():
        cache_captions(work, pictures)
    latents = torch.load(work / "latents.pt", weights_only=True)
    captions = torch.load(work / "captions.pt", weights_only=True, mmap=True)
    parts = dataset.load_parts(work, "train")
    return Cache(latents["latents"], latents["deviation"], captions["embeddings"], captions["which"], parts)


def draw_batch(cache: Cache) -> Batch:
    """Return latents sampled from the posterior, the states of their captions, and where the named parts are."""
    chosen = torch.randint(len(cache.latents), (BATCH,))
    mean = cache.latents[chosen].float()
    x_0 = mean + cache.deviation[:, None, None] * torch.randn_like(mean)
    rows = cache.which[chosen, torch.randint(cache.which.shape[1], (BATCH,))]
    rows[torch.rand(BATCH) < EMPTY_CAPTIONS] = 0
    return Batch(x_0.to(device()), cache.embeddings[rows].to(device()), parts=cache.parts[chosen].to(device()))


def weights_of(parts: Tensor) -> Tensor:
    """Return how much each cell counts, (batch, height, width) with a mean of 1 in each picture.

    The whole picture has one share, and each part that it shows PART_WEIGHT of one, spread over its cells.
    """
    area = parts.mean((2, 3), keepdim=True).clamp_min(SMALLEST_PART)
    share = 1 + PART_WEIGHT * (parts / area).sum(1)
    return share / share.mean((1, 2), keepdim=True)


def v_loss(unet: UNet2DConditionModel, batch: Batch, alphas: Tensor) -> Tensor:
    """Return the v-prediction error; `alphas` are the cumulative products of the timesteps to learn, each counts alike.

    Where it is known where the named parts are, each has a share of its own, however small it is.
    """
    x_0 = batch.x_0
    t = torch.randint(len(alphas), (len(x_0),), device=x_0.device)
    noise = torch.randn_like(x_0)
    signal, spread = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
    x_t, v = signal * x_0 + spread * noise, signal * noise - spread * x_0
    made = unet(x_t.to(unet.dtype), t, batch.hidden, added_cond_kwargs=batch.added).sample.float()
    error = (made - v).square().mean(1)
    if batch.parts is not None:
        error = error * weights_of(batch.parts)
    return error.mean()


class Master:
    """The float32 weights behind a bfloat16 model, their moving average and their optimizer."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.fast = list(unet.parameters())
        self.weights = [p.detach().float().clone() for p in self.fast]
        self.average = [w.clone() for w in self.weights]
        self.names = [name for name, _ in unet.named_parameters()]
        named = list(zip(self.names, self.weights, strict=True))
        scales = {"attn2": TEXT_RATE, "add_embedding": TOLD_RATE}
        scale_of = {name: next((s for part, s in scales.items() if part in name), 1.0) for name in self.names}
        groups = [{"params": [w for name, w in named if scale_of[name] == scale], "scale": scale}
                  for scale in (TEXT_RATE, 1.0, TOLD_RATE) if scale in scale_of.values()]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, PEAK_RATE, (0.9, 0.99), weight_decay=0.01, fused=True)

    def step(self, rate: float, decay: float) -> None:
        """Apply the gradients of the bfloat16 model to the float32 weights, copy them back."""
        set_rate(self.optimizer, rate)
        for weight, fast in zip(self.weights, self.fast, strict=True):
            weight.grad = fast.grad.float()
            fast.grad = None
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.fast, self.weights)
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)

    def state(self) -> dict[str, object]:
        """Return what a checkpoint needs."""
        return {
            "weights": dict(zip(self.names, self.weights, strict=True)),
            "ema": dict(zip(self.names, self.average, strict=True)),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from a checkpoint, or from bare weights without an optimizer."""
        for name, weight, average in zip(self.names, self.weights, self.average, strict=True):
            weight.data.copy_(state["weights"][name])
            average.copy_(state["ema"][name])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            torch._foreach_copy_(self.fast, self.weights)


def _continue_from_assets(work: Path) -> dict[str, dict[str, Tensor]]:
    """Return the weights that stage `adopt` placed in the working folder, if any, as they read whitened states."""
    folder = work / "unet_start"
    if not folder.exists():
        return {}
    weights = UNet2DConditionModel.from_pretrained(folder).float().state_dict()
    weights = whitening.load(work / "captions.pt").to_white(weights)
    return {"weights": weights, "ema": weights}


def train(
    unet: UNet2DConditionModel,
    clock: Clock,
    draw: Callable[[], Batch],
    alphas: Tensor,
    *,
    start: dict[str, dict[str, Tensor]],
    peak: float = PEAK_RATE,
    slowest: float = 0.999,
) -> None:
    """Train to the end of the clock's time; every checkpoint holds the moving average that is exported.

    `start` are weights to begin with, where there is no checkpoint; `slowest` is the decay of the average at its end.
    """
    master = Master(unet)
    begun = clock.state or start
    if begun:
        master.load(begun)
    torch.manual_seed(clock.step)
    losses: list[float] = []
    while not clock.over:
        loss = v_loss(unet, draw(), alphas)
        loss.backward()
        decay = min(slowest, (10 + clock.step) / (100 + clock.step))
        master.step(warm_cosine(clock, peak, floor=0.05), decay)
        losses.append(loss.item())
        if clock.tick(BATCH):
            clock.save(master.state())
            clock.log(loss=float(np.mean(losses)))
            losses.clear()


def run(work: Path, minutes: float = 70) -> None:
    """Train for `minutes` in all."""
    set_threads()
    cache = load_cache(work, dataset.load(work, "train"))
    torch.manual_seed(0)
    unet = build().to(device(), torch.bfloat16).train()
    alphas = scheduler().alphas_cumprod.to(device())
    clock = Clock(work / "unet.pt", minutes)
    train(unet, clock, lambda: draw_batch(cache), alphas, start=_continue_from_assets(work))
