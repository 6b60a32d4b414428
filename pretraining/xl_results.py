"""Stage `xl_results`: what the XL pair shows, as figures and two sheets in the working folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from limner.families.source import made_here
from pretraining import dataset, measure, sheets, views, xl_text
from pretraining.progress import autocast, set_threads
from pretraining.text import tokenize

COUNT, GUIDANCE_SCALE, STEPS = 48, 3.5, 20
STRENGTH, REFINER_GUIDANCE_SCALE = 0.2, 1.5  # the share of the noise that the refiner takes over
_WHOLE: dict[str, Any] = {
    "negative_original_size": (views.SIDE_PX,) * 2, "negative_target_size": (views.SIDE_PX,) * 2,
    "negative_crops_coords_top_left": (0, 0),
}  # fmt: skip
TOLD: dict[str, dict[str, Any]] = {
    "as Limner asks": {},
    "original size 32": {"original_size": (32, 32), **_WHOLE},
    "crop at the top, 32": {"crops_coords_top_left": (32, 0), **_WHOLE},
    "crop at the left, 32": {"crops_coords_top_left": (0, 32), **_WHOLE},
}
"""What the base is told beside the caption, for the same captions and seeds; guidance leads away from what is whole."""


def _seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def draw(pipe: StableDiffusionXLPipeline, captions: list[str], **told: Any) -> Tensor:
    """Return one picture per caption (n, 3, 96, 96) in [-1, 1]; seed = index."""
    side = views.SIDE_PX
    with autocast():
        out = pipe(captions, num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE, height=side, width=side,
                   generator=_seeds(len(captions)), output_type="pt", **told)  # fmt: skip
    return out.images.float() * 2 - 1


def refine(pipe: StableDiffusionXLImg2ImgPipeline, pixels: Tensor, captions: list[str], score: float) -> Tensor:
    """Return pictures (n, 3, 96, 96) in [-1, 1] that the refiner goes over."""
    with autocast():
        out = pipe(captions, image=(pixels + 1) / 2, strength=STRENGTH, num_inference_steps=2 * STEPS,
                   guidance_scale=REFINER_GUIDANCE_SCALE, aesthetic_score=score, output_type="pt",
                   generator=_seeds(len(captions)))  # fmt: skip
    return out.images.float() * 2 - 1


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Return the PSNR in dB of each picture."""
    return -10 * ((made.clamp(-1, 1) - real) / 2).square().mean((1, 2, 3)).log10()


def sharpness(pixels: Tensor) -> Tensor:
    """Return the mean absolute second difference of each picture in [-1, 1]: 0 for a plane, larger with detail."""
    across = (pixels[..., 2:] - 2 * pixels[..., 1:-1] + pixels[..., :-2]).abs().mean((1, 2, 3))
    down = (pixels[..., 2:, :] - 2 * pixels[..., 1:-1, :] + pixels[..., :-2, :]).abs().mean((1, 2, 3))
    return (across + down) / 2


def subject(pixels: Tensor) -> Tensor:
    """Return 1 (n, height, width) where a picture differs from its background, the most frequent border, else 0."""
    border = torch.cat([pixels[..., 0, :], pixels[..., :, 0], pixels[..., :, -1]], -1).median(-1).values
    return ((pixels - border[..., None, None]).abs().amax(1) > 0.3).float()


def centre(pixels: Tensor) -> Tensor:
    """Return x and y (n, 2) in pixels of the middle of the subject."""
    mask = subject(pixels)
    places = torch.arange(pixels.shape[-1], dtype=torch.float32)
    total = mask.sum((1, 2)).clamp(min=1)
    return torch.stack([(mask.sum(1) * places).sum(1) / total, (mask.sum(2) * places).sum(1) / total], 1)


@torch.no_grad()
def _followed(pixels: Tensor, records: list[dict[str, object]], base: Path) -> Tensor:
    """Return per picture 1 where the base's own encoder finds its caption among 32."""
    own = CLIPModel.from_pretrained(base / "image_text_encoder", dtype=torch.float32).eval()
    ids = tokenize(CLIPTokenizer.from_pretrained(base / "tokenizer"), [str(r["full_caption"]) for r in records])
    seen = own(input_ids=ids, pixel_values=views.resized(pixels, 64))
    return measure.right_caption(seen.image_embeds, seen.text_embeds, records)


def run(work: Path, minutes: float | None = None, *, base: Path) -> None:
    """Measure tiny-xl, its refiner and the base that they come from; `minutes` has no meaning here."""
    set_threads()
    folder = xl_text.folder_of(work)
    pictures = dataset.load(folder, "held_out")
    records, captions = pictures.records[:COUNT], [str(r["full_caption"]) for r in pictures.records[:COUNT]]
    large = pictures.batch(range(COUNT))
    real = views.resized(large, views.SIDE_PX)
    pipe = StableDiffusionXLPipeline.from_pretrained(made_here("tiny-xl"), dtype=torch.float32, add_watermarker=False)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        made_here("tiny-xl-refiner"), dtype=torch.float32, add_watermarker=False
    )
    like = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    for one in (pipe, refiner, like):
        one.set_progress_bar_config(disable=True)
    drawn = {told: draw(pipe, captions, **how) for told, how in TOLD.items()}
    own = drawn["as Limner asks"]
    refined = {score: refine(refiner, own, captions, score) for score in (2.0, 6.0)}
    torch.manual_seed(0)
    worse = torch.cat([views.degraded(one[None], 0.6) for one in real])
    mended = {score: refine(refiner, worse, captions, score) for score in (2.0, 6.0)}
    small = measure.draw(like, captions, GUIDANCE_SCALE)
    moved = {told: centre(pixels) - centre(own) for told, pixels in drawn.items()}
    larger = {told: (subject(pixels) - subject(own)).mean((1, 2)) for told, pixels in drawn.items()}
    values = {
        "right caption among 32: real pictures": _followed(real, records, base),
        "right caption among 32: the base at 64 px": _followed(small, records, base),
        "right caption among 32: tiny-xl": _followed(own, records, base),
        "right caption among 32: tiny-xl and refiner": _followed(refined[6.0], records, base),
        "sharpness: real pictures": sharpness(real),
        **{f"sharpness: {told}": sharpness(pixels) for told, pixels in drawn.items()},
        "original size 32: sharpness lost": sharpness(own) - sharpness(drawn["original size 32"]),
        **{f"sharpness: refined, score {score:.0f}": sharpness(pixels) for score, pixels in refined.items()},
        "crop at the top, 32: subject moves down, px": moved["crop at the top, 32"][:, 1],
        "crop at the left, 32: subject moves right, px": moved["crop at the left, 32"][:, 0],
        **{f"{told}: share that the subject fills, more": larger[told] for told in TOLD if told.startswith("crop")},
        "PSNR in dB of degraded real pictures": psnr(worse, real),
        **{f"PSNR in dB, mended with score {score:.0f}": psnr(pixels, real) for score, pixels in mended.items()},
        "sharpness: degraded real pictures": sharpness(worse),
        **{f"sharpness: mended with score {score:.0f}": sharpness(pixels) for score, pixels in mended.items()},
    }
    figures = {name: measure.figure(value) for name, value in values.items()}
    (folder / "results.json").write_text(json.dumps({name: vars(f) for name, f in figures.items()}, indent=1))
    for name, value in figures.items():
        print(f"{name}: {value}")
    rows = [real, views.resized(small, views.SIDE_PX), own, refined[6.0], *list(drawn.values())[1:]]
    _write(folder / "sheets" / "tiny_xl.webp", captions, rows)
    _write(folder / "sheets" / "refiner.webp", captions, [real, worse, mended[2.0], mended[6.0]])


def _write(path: Path, captions: list[str], columns: list[Tensor]) -> None:
    """Write a sheet with a row for each of the first captions and a picture for each column."""
    groups = zip(*(sheets.images(pixels[:16]) for pixels in columns), strict=True)
    sheets.write(path, [(caption, list(group)) for caption, group in zip(captions, groups, strict=False)], 2)
