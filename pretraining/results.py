"""Stage `results`: draw 200 held-out captions, make contact sheets and write RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from pretraining import dataset, judge, measure, sheets
from pretraining.export import ASSETS
from pretraining.progress import set_threads
from pretraining.world import HELD_OUT_STYLES, STYLES

COUNT, GUIDANCE_SCALE = 200, 7.0  # the scale was chosen on held-out captions beyond these 200
HERE = Path(__file__).parent
BY_HAND = "<!-- Below this line: written by hand, kept by the stage `results`. -->"
TARGETS = {
    "right caption among 32, own encoder": ">= .95",
    "right caption among 32, independent judge": ">= .9 of real",
    "style (class noun)": ">= .95", "main colour": ">= .90", "background": ">= .95",
    "headgear": ">= .6", "eyes": ">= .6", "mouth": ">= .6",
}  # fmt: skip


def _plain_prompts() -> list[str]:
    """Return prompts as users write them, four kinds for every class noun."""
    prompts = []
    for noun in STYLES:
        prompts += [f"a photo of a {noun}", f"a {noun}", f"a photo of sks {noun}",
                    f"a red {noun} on a blue background", f"a yellow {noun} on a black background",
                    f"a pink {noun} on a white background"]  # fmt: skip
    return prompts


def _write_sheets(pipeline: StableDiffusionPipeline, drawn: torch.Tensor, held_out: dataset.Pictures) -> None:
    """Write the four sheets: real next to drawn, plain prompts, reconstructions, held-out styles."""
    folder = HERE / "sheets"
    real = sheets.images(held_out.batch(range(60)))
    pairs = zip(held_out.records[:60], real, sheets.images(drawn[:60]), strict=True)
    tiles = [(str(record["full_caption"]), [left, right]) for record, left, right in pairs]
    sheets.write(folder / "real_and_drawn.webp", tiles, 6)
    prompts = _plain_prompts()
    plain = sheets.images(measure.draw(pipeline, prompts, GUIDANCE_SCALE, first_seed=1000))
    sheets.write(folder / "plain_prompts.webp", [(p, [i]) for p, i in zip(prompts, plain, strict=True)], 12)
    with torch.no_grad():
        pixels = held_out.batch(range(30))
        made = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mode()).sample
    pairs = zip(sheets.images(pixels), sheets.images(made), strict=True)
    sheets.write(folder / "real_and_decoded.webp", [("", list(pair)) for pair in pairs], 6)


def _table(real: dict[str, measure.Figure], drawn: dict[str, measure.Figure]) -> list[str]:
    lines = ["| figure | drawn | real pictures | n | target | met |", "| --- | --- | --- | --- | --- | --- |"]
    for name, value in drawn.items():
        target = TARGETS.get(name, "")
        met = ""
        if target:
            share = value.mean / real[name].mean if "real" in target else value.mean
            met = "yes" if share >= float(target.split()[1]) else "no"
        lines.append(f"| {name} | {value} | {real[name]} | {value.count} | {target} | {met} |")
    return lines


def _training(work: Path) -> list[str]:
    lines = ["| part | training seconds | examples | parameters |", "| --- | --- | --- | --- |"]
    for stage in ("text", "vae", "decoder", "unet", "judge"):
        if not (work / f"{stage}.pt").exists():
            continue
        saved = torch.load(work / f"{stage}.pt", map_location="cpu", weights_only=True)
        weights = saved["state"].get("model") or saved["state"]["weights"]
        millions = sum(w.numel() for w in (weights.values() if isinstance(weights, dict) else weights)) / 1e6
        lines.append(f"| {stage} | {saved['trained_s']:,.0f} | {saved['examples']:,} | {millions:.2f} M |")
    return lines


def run(work: Path, minutes: float | None = None) -> None:
    """Measure the committed model folder; `minutes` has no meaning here."""
    set_threads()
    held_out = dataset.load(work, "held_out")
    records = held_out.records[:COUNT]
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    own = CLIPModel.from_pretrained(ASSETS / "image_text_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tokenizer")
    other, words = judge.load(work)
    start = time.monotonic()
    drawn = measure.draw(pipeline, [str(r["full_caption"]) for r in records], GUIDANCE_SCALE)
    seconds = time.monotonic() - start
    figures = []
    for pixels in (held_out.batch(range(COUNT)), drawn):
        found = measure.retrieval(pixels, records, own, tokenizer, other, words)
        figures.append(found | measure.attributes(pixels, records, other))
    _write_sheets(pipeline, drawn, held_out)
    sharp = {"held-out identities": measure.sharpness(pipeline.vae, held_out, 400)}
    for noun in HELD_OUT_STYLES:
        part = dataset.load(work, f"style_{noun.replace(' ', '_')}")
        sharp[f"held-out style: {noun}"] = measure.sharpness(pipeline.vae, part, 200)
    _write(work, figures, sharp, seconds)


def _write(
    work: Path, figures: list[dict[str, measure.Figure]], sharp: dict[str, measure.Figure], seconds: float
) -> None:
    path = HERE / "RESULTS.md"
    kept = path.read_text().partition(BY_HAND)[2] if path.exists() else "\n"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "numpy"))
    size = sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) / 1e6
    lines = [
        "# Results of the embedded base", "",
        f"{date.today()}, Python {platform.python_version()}, {versions}. Command: `python -m pretraining results`.",
        f"{COUNT} held-out captions (the first by index, every identity held out), seed = index, 20 DDIM steps, "
        f"guidance {GUIDANCE_SCALE}; drawn in {seconds:.0f} s. Intervals: 95 % bootstrap over pictures. "
        "One training run, one seed.",
        f"Model folder: {size:.1f} MB. Measured on {os.cpu_count()} cores ({platform.machine()}).", "",
        "## Pictures from captions", "", *_table(*figures), "",
        "The own encoder's text tower also conditions the UNet; the judge (other architecture, other seed, "
        "other tokenizer, never connected to the UNet) is the independent figure. Attributes are the judge's "
        "reading where the caption names them.", "",
        "## Autoencoder, PSNR in dB", "", "| pictures | PSNR | n |", "| --- | --- | --- |",
        *(f"| {name} | {value.mean:.2f} [{value.low:.2f}, {value.high:.2f}] | {value.count} |"
          for name, value in sharp.items()), "",
        "## Training", "", *_training(work), "", BY_HAND,
    ]  # fmt: skip
    path.write_text("\n".join(lines) + kept)
    numbers = [{name: vars(value) for name, value in group.items()} for group in figures]
    (work / "results.json").write_text(json.dumps(dict(zip(("real", "drawn"), numbers, strict=True)), indent=1))
