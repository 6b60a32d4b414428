"""Stage `xl`: the base's UNet becomes SDXL's: both text encoders, pooled text, sizes and crops; 96 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pretraining import dataset, unet, views, xl_export, xl_text
from pretraining.progress import Clock, device, set_threads
from pretraining.text import tokenize

PEAK_RATE, SLOWEST = 5e-4, 0.995
POOLED, TIME_WIDTH = 256, 32


def build(base: Path, context: int, told: int, **changes: Any) -> UNet2DConditionModel:
    """Return a UNet like the base's with SDXL's conditioning; `told` is how many numbers it is told."""
    like = UNet2DConditionModel.load_config(base / "unet")
    made: UNet2DConditionModel = UNet2DConditionModel.from_config(
        {
            **like, "sample_size": views.SIDE_PX // 4, "cross_attention_dim": context, "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": TIME_WIDTH,
            "projection_class_embeddings_input_dim": POOLED + TIME_WIDTH * told, **changes,
        }
    )  # fmt: skip
    if device().type == "cpu":
        made.set_attn_processor(AttnProcessor())
    return made


def starting_weights(
    made: UNet2DConditionModel, taught: dict[str, Tensor], fit: Tensor
) -> dict[str, dict[str, Tensor]]:
    """Return weights with which a new UNet draws as the taught one does, as far as it can.

    `fit` (new, old) brings the states of the new text encoders to those that the taught UNet knows. What is told
    beside the text begins without effect.
    """
    weights = {name: weight.detach().float().clone() for name, weight in made.named_parameters()}
    for name, weight in weights.items():
        if name.startswith("add_embedding.linear_2"):
            weight.zero_()
        elif name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.copy_(taught[name].float() @ fit.T)
        elif not name.startswith("add_embedding"):
            weight.copy_(taught[name].reshape(weight.shape))  # 1 x 1 convolutions become linear layers
    return {"weights": weights, "ema": weights}


def fitted(known: Tensor, new: Tensor) -> Tensor:
    """Return the matrix (new, known) that best brings states of the new text encoders to those that a UNet knows."""
    known, new = known.flatten(0, 1).float(), new.flatten(0, 1).float()
    solution = torch.linalg.lstsq(new, known).solution
    rest = (new @ solution - known).square().sum() / (known - known.mean(0)).square().sum()
    print(f"the new text encoders explain {1 - rest:.3f} of what the UNet knew", flush=True)
    return solution


def _known_states(work: Path, base: Path) -> Tensor:
    """Return the states that the base's UNet was taught with, of the first captions of the cache."""
    rows = {"": 0}
    for record in dataset.load(xl_text.folder_of(work), "train").records[:1000]:
        for caption in record["captions"][: xl_text.CAPTIONS]:
            rows.setdefault(caption, len(rows))
    model = CLIPModel.from_pretrained(base / "image_text_encoder", dtype=torch.float32).eval()
    ids = tokenize(CLIPTokenizer.from_pretrained(base / "tokenizer"), list(rows))
    with torch.no_grad():
        return model.text_model(ids).last_hidden_state


def drawing(seen: views.Views, captions: dict[str, Tensor], silent: Tensor) -> Callable[[], unet.Batch]:
    """Return what draws batches of views and captions; `silent` (1, width) multiplies the text of empty captions."""

    def draw() -> unet.Batch:
        chosen = torch.randint(len(seen.latents), (unet.BATCH,))
        mean = seen.latents[chosen].float()
        x_0 = mean + seen.deviation[:, None, None] * torch.randn_like(mean)
        variant = torch.randint(captions["which"].shape[1], (unet.BATCH,))
        rows = captions["which"][chosen, variant]
        rows[torch.rand(unet.BATCH) < unet.EMPTY_CAPTIONS] = 0
        said = torch.where(rows > 0, 1.0, silent).bfloat16()
        added = {
            "text_embeds": (captions["pooled"][rows] * said[:, None]).to(device()),
            "time_ids": seen.time_ids[chosen].to(device()),
        }
        hidden = captions["hidden"][rows] * said[:, None, None]
        return unet.Batch(x_0.to(device()), hidden.to(device()), added)

    return draw


def run(work: Path, minutes: float = 10, *, base: Path) -> None:
    """Train for `minutes` in all, beginning with the base's weights; ends with the folder that base=tiny-xl finds."""
    set_threads()
    folder = xl_text.folder_of(work)
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
    seen = views.load(folder / "views.pt", dataset.load(folder, "train"), vae, views.sized_or_cropped)
    captions = torch.load(folder / "captions.pt", weights_only=True, mmap=True)
    torch.manual_seed(0)
    network = build(base, captions["hidden"].shape[-1], seen.time_ids.shape[-1])
    clock = Clock(folder / "unet.pt", minutes)
    start = {}
    if not clock.state:
        known = _known_states(work, base)
        fit = fitted(known, captions["hidden"][: len(known)])
        start = starting_weights(network, UNet2DConditionModel.from_pretrained(base / "unet").state_dict(), fit)
    network.to(device(), torch.bfloat16).train()
    draw = drawing(seen, captions, torch.zeros(1))  # to SDXL's base no prompt is zeros
    alphas = unet.scheduler().alphas_cumprod.to(device())
    unet.train(network, clock, draw, alphas, start=start, peak=PEAK_RATE, slowest=SLOWEST)
    xl_export.write("tiny-xl", work, base, network, clock)
