"""Stage `subject`: a plain peft LoRA learns the demo subject; writes a sheet of base and tuned pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from pretraining import demo, measure, sheets, unet
from pretraining.export import ASSETS
from pretraining.progress import set_threads
from pretraining.text import tokenize

STEPS, RATE, RANK, HALF_BATCH, SUBJECT = 250, 2e-3, 8, 4, "critter"
# Attention alone takes over little more than the colour in this time.
MODULES = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "proj_in", "proj_out"]
GUIDANCE_SCALE = 3.5


def _pixels(folder: Path) -> Tensor:
    files = sorted(folder.glob("*.png"))
    small = [Image.open(f).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS) for f in files]
    return torch.from_numpy(np.stack([np.asarray(i) for i in small])).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def _embed(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    states = pipeline.text_encoder(tokenize(pipeline.tokenizer, [prompt])).last_hidden_state
    return states.expand(HALF_BATCH, -1, -1)


def _train(pipeline: StableDiffusionPipeline, pixels: Tensor, prior: Tensor, instance: str, kind: str) -> None:
    """Train a rank-8 LoRA on attention, feed-forward and convolutions; half of each batch is prior pictures."""
    network = pipeline.unet
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES))
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=0.0)
    alphas = unet.scheduler().alphas_cumprod
    embeddings = torch.cat([_embed(pipeline, p) for p in (instance, kind)])
    with torch.no_grad():
        own, others = (pipeline.vae.encode(p).latent_dist.mode() for p in (pixels, prior))
    for step in range(STEPS):
        chosen = [group[torch.randint(len(group), (HALF_BATCH,))] for group in (own, others)]
        loss = unet.v_loss(network, unet.Batch(torch.cat(chosen), embeddings), alphas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)


def run(work: Path, minutes: float | None = None) -> None:
    """Train on the committed base and write sheets/subject.webp; the arguments are unused."""
    set_threads()
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.set_attn_processor(AttnProcessor())
    noun = demo.subjects()[SUBJECT][0].noun
    pixels = _pixels(demo.ASSETS / SUBJECT)
    instance, kind = f"a photo of sks {noun}", f"a photo of a {noun}"
    prompts = [instance, f"sks {noun}", f"{instance} on a purple background", f"{instance} on a gray background",
               f"{instance} with a smile on a red background", f"{instance} on a cyan background",
               kind, f"a green {noun} with horns", f"a red {noun} on a white background", "a photo of a robot",
               ]  # fmt: skip
    prior = measure.draw(pipeline, [kind] * 12, GUIDANCE_SCALE, first_seed=500)
    before = measure.draw(pipeline, prompts, GUIDANCE_SCALE, first_seed=40)
    _train(pipeline, pixels, prior, instance, kind)
    after = measure.draw(pipeline, prompts, GUIDANCE_SCALE, first_seed=40)
    tiles = [("the subject", [image]) for image in sheets.images(pixels)]
    pairs = zip(prompts, sheets.images(before), sheets.images(after), strict=True)
    path = Path(__file__).parent / "sheets" / "subject.webp"
    sheets.write(path, [*((p, [b, a]) for p, b, a in pairs), *tiles], 5)
