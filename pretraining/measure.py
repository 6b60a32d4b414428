"""Measures pictures against their captions: the figures of RESULTS.md, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pretraining import dataset, judge
from pretraining.text import tokenize
from pretraining.vae import psnr

CANDIDATES = 32


@dataclass(frozen=True)
class Figure:
    """A mean over pictures with its 95 % bootstrap interval over pictures."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def figure(values: Tensor, draws: int = 2000) -> Figure:
    """Return the mean of per-picture values with its interval."""
    array = values.double().numpy()
    chosen = np.random.default_rng(0).integers(0, len(array), (draws, len(array)))
    low, high = np.quantile(array[chosen].mean(1), (0.025, 0.975))
    return Figure(float(array.mean()), float(low), float(high), len(array))


def draw(pipeline: StableDiffusionPipeline, captions: list[str], guidance_scale: float, first_seed: int = 0) -> Tensor:
    """Return one picture per caption (n, 3, 64, 64) in [-1, 1]: 20 DDIM steps, seed = index."""
    made = []
    for start in range(0, len(captions), 20):
        part = captions[start : start + 20]
        seeds = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(part))]
        out = pipeline(part, num_inference_steps=20, guidance_scale=guidance_scale, generator=seeds,
                       height=64, width=64, output_type="pt")  # fmt: skip
        made.append(out.images.float().cpu() * 2 - 1)
    return torch.cat(made)


def _candidates(records: list[dict[str, object]], same_noun: bool) -> Tensor:
    """Return for each picture 32 caption indices, the right one first; no caption occurs twice."""
    random = np.random.default_rng(3)
    rows = []
    for i, record in enumerate(records):
        others = [
            j
            for j, other in enumerate(records)
            if other["full_caption"] != record["full_caption"] and (not same_noun or other["noun"] == record["noun"])
        ]
        rows.append([i, *random.permutation(others)[: CANDIDATES - 1].tolist()])
    return torch.tensor(rows)


def right_caption(images: Tensor, texts: Tensor, records: list[dict[str, object]], same_noun: bool = False) -> Tensor:
    """Return per picture 1 where its own caption is the nearest of 32, else 0."""
    rows = _candidates(records, same_noun)
    scores = torch.einsum("nd,nkd->nk", images, texts[rows])
    return (scores.argmax(1) == 0).float()


@torch.no_grad()
def retrieval(
    pixels: Tensor, records: list[dict[str, object]], model: CLIPModel, tokenizer: CLIPTokenizer,
    other: judge.Judge, words: judge.Words,
) -> dict[str, Figure]:  # fmt: skip
    """Return the right-caption figures by the base's own encoder and by the independent judge."""
    captions = [str(record["full_caption"]) for record in records]
    own = model(input_ids=tokenize(tokenizer, captions), pixel_values=pixels)
    seen, read = other.look(pixels)[0], other.understand(words(captions))
    return {
        "right caption among 32, own encoder": figure(right_caption(own.image_embeds, own.text_embeds, records)),
        "the same, captions of the same class only": figure(
            right_caption(own.image_embeds, own.text_embeds, records, same_noun=True)
        ),
        "right caption among 32, independent judge": figure(right_caption(seen, read, records)),
        "the same, captions of the same class only (judge)": figure(right_caption(seen, read, records, same_noun=True)),
    }


def attributes(pixels: Tensor, records: list[dict[str, object]], other: judge.Judge) -> dict[str, Figure]:
    """Return how often the judge reads each attribute that the caption names."""
    seen = judge.answer(other, pixels)
    figures = {}
    for column, (question, answers) in enumerate(judge.classes().items()):
        right = torch.tensor([judge.truth(record)[column] for record in records])
        named = torch.tensor(
            [
                answers[i] != "" and _names(question, answers[i], str(record["full_caption"]))
                for i, record in zip(right.tolist(), records, strict=True)
            ]
        )
        label = {"noun": "style (class noun)", "main": "main colour"}.get(question, question)
        figures[label] = figure((seen[:, column] == right)[named].float())
    return figures


def _names(question: str, answer: str, caption: str) -> bool:
    """Return whether the caption names this attribute."""
    if question == "background":
        return f" {answer} background" in caption or f" {answer} wall" in caption
    if question == "main":
        caption = caption.split(" on a")[0].split(" in front")[0].split(" against")[0]
    return answer in caption


def sharpness(vae: AutoencoderKL, pictures: dataset.Pictures, count: int) -> Figure:
    """Return the PSNR in dB of reconstructions from the posterior mean."""
    return figure(psnr(vae, pictures, count))
