"""How fast a picture follows a prompt, live and with plain diffusers: `python -m benchmarks.live_latency`.

A LoRA (random weights unless --adapter names a file) and the LCM sampler draw the prompts that come up while one is
typed. All arms draw every prompt, in any order, in one process and on one set of files, so that what disturbs the
machine hits all alike; the ratios are of one round each. Two arms have a small decoder of random weights in TAESD's
published configuration, with as many blocks as the base needs: how fast it is does not depend on its weights. Needs no
network: the base is a diffusers folder or "tiny". At full size diffusers' two and Limner have a UNet each, and
Limner a copy of its weights; leave arms out with --arms where memory is short.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.about import about
from limner import machine
from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.export.diffusers_lora import write_lora
from limner.families.decoder import load_decoder
from limner.families.load import sketch
from limner.families.recognise import recognise
from limner.families.source import locate
from limner.generate.few_steps import FewSteps
from limner.generate.warm import Warm
from limner.live import Live, live

PROMPT = "a photo of a small red critter with horns on a blue background"
ARMS = {
    "unfused": "diffusers, unfused", "fused": "diffusers, fused", "fused-small": "diffusers, fused, small decoder",
    "live": "Limner, live", "live-small": "Limner, live, small decoder",
    "live-compiled": "Limner, live, compiled", "live-compiled-small": "Limner, live, compiled, small decoder",
}  # fmt: skip
DEFAULT = ("unfused", "fused", "fused-small", "live", "live-small")
BLOCKS = (3, 3, 3, 1)
"""How many layers each of TAESD's blocks has, of 64 channels each; every block but the last doubles the side."""
WARM_UP = 2


def main() -> None:
    """Measure, print one table, and write it."""
    given = asked()
    with tempfile.TemporaryDirectory() as folder:
        adapter = given.adapter or random_lora(given.base, Path(folder) / "lcm.safetensors", given.steps)
        decoder = random_decoder(given.base, Path(folder) / "decoder")
        with drawers(given, adapter, decoder) as arms:
            taken = measure(arms, given.rounds, given.device)
    found: dict[str, Any] = {
        **about(), "base": given.base, "resolution_px": given.resolution or recognise(given.base).native_resolution_px,
        "precision": given.precision, "device": machine.name_of(torch.device(given.device)), "steps": given.steps,
        "rounds": given.rounds, "peak_memory_gib": round(machine.peak_memory_gib(), 2), "arms": summed(taken),
    }  # fmt: skip
    given.results.write_text(json.dumps(found, indent=1) + "\n")
    for arm in found["arms"].values():
        ratio = arm.get("times_live")
        beside = f"   {ratio['median']:.2f} times as long [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
        print(f"{arm['name']:<40}{arm['median_ms']:>9.1f} ms{beside}")


def asked() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_latency", description=__doc__)
    parser.add_argument("--base", default="tiny", help="a diffusers folder; benchmarks.full_size makes full-size ones")
    parser.add_argument("--resolution", type=int, default=0, help="side of the pictures in pixels; 0: the base's own")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "live_latency.json")
    return parser.parse_args()


def random_lora(base: str, path: Path, steps: int) -> Path:
    """Write a LoRA of random weights that says it is a few-step adapter: how fast it is does not depend on them."""
    family = sketch(base, dtype=torch.float32)
    adapter = LoRA(rank=64, targets="all").attach(family, [SlotSettings(seed=0)])
    state = {name: torch.randn(one.shape) * 1e-3 if one.ndim else torch.tensor(64.0)
             for name, one in adapter.state_dict().items()}  # fmt: skip
    write_lora(state, path, {**family.facts, "few_steps": FewSteps(steps=steps).model_dump(mode="json")})
    return path


def random_decoder(base: str, path: Path) -> Path:
    """Write a small decoder of random weights, as TAESD is published, that fits the base's latents."""
    from diffusers import AutoencoderTiny

    count = recognise(base).latents[1].bit_length()
    model = AutoencoderTiny(encoder_block_out_channels=(64,) * count, decoder_block_out_channels=(64,) * count,
                            num_encoder_blocks=BLOCKS[-count:][::-1], num_decoder_blocks=BLOCKS[-count:])  # fmt: skip
    last: Any = model.decoder.layers[-1]
    last.weight.data *= 100  # a picture of one colour would be the VAE's
    model.save_pretrained(path)
    return path


@contextmanager
def drawers(given: argparse.Namespace, adapter: Path, decoder: Path) -> Iterator[dict[str, Callable[[str], Any]]]:
    """Yield how each arm draws a prompt, warm."""
    arms: dict[str, Callable[[str], Any]] = {}
    for fuse in (False, True):
        if {"fused", "fused-small"} & {*given.arms} if fuse else "unfused" in given.arms:
            pipe = plain(given, adapter, fuse=fuse)
            arms["fused" if fuse else "unfused"] = drawn_by(pipe, given)
            if fuse:
                arms["fused-small"] = drawn_by(with_small(pipe, decoder), given)
    settings = {"device": given.device, "precision": given.precision, "generation.num_inference_steps": given.steps}
    settings |= {"resolution": given.resolution} if given.resolution else {}
    with live(given.base, adapters=[(adapter, 1.0)], settings=settings) as drawn:
        warm = drawn.warm
        small = load_decoder(str(decoder), recognise(given.base), dtype=warm.family.dtype, device=given.device)
        side = given.resolution or warm.family.native_resolution_px
        with_it = dataclasses.replace(drawn, warm=Warm(warm.family, warm.sampling, side, small))
        arms |= {"live": drawn.picture, "live-small": with_it.picture}
        if any("compiled" in name for name in given.arms):
            forward = torch.compile(warm.family.unet.forward, dynamic=False)
            arms |= {"live-compiled": compiled(forward, drawn), "live-compiled-small": compiled(forward, with_it)}
        yield {name: arms[name] for name in ARMS if name in given.arms}


def plain(given: argparse.Namespace, adapter: Path, *, fuse: bool) -> Any:
    """Return diffusers' pipeline with the adapter, set up once as its guide says."""
    from diffusers import DiffusionPipeline, LCMScheduler

    pipe: Any = DiffusionPipeline.from_pretrained(
        locate(given.base) or given.base, dtype=getattr(torch, given.precision), safety_checker=None
    )
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    if fuse:
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.to(given.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_small(pipe: Any, decoder: Path) -> Any:
    """Return a pipeline over the same modules, with a small decoder for its VAE."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(decoder).to(pipe.device, pipe.unet.dtype)
    other = type(pipe)(**{**pipe.components, "vae": vae})
    other.set_progress_bar_config(disable=True)
    return other


def drawn_by(pipe: Any, given: argparse.Namespace) -> Callable[[str], Any]:
    """Return how a pipeline draws a prompt."""
    size = {"height": given.resolution, "width": given.resolution} if given.resolution else {}
    return lambda prompt: pipe(prompt, num_inference_steps=given.steps, guidance_scale=1.0, **size).images[0]


def compiled(forward: Callable[..., Any], drawn: Live) -> Callable[[str], Any]:
    """Return how a prompt is drawn with the UNet compiled, as `fast=compile` does; the other arms have it as it is."""
    unet = drawn.warm.family.unet

    def draw(prompt: str) -> Any:
        unet.forward = forward
        try:
            return drawn.picture(prompt)
        finally:
            del unet.forward

    return draw


def measure(arms: dict[str, Callable[[str], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of every picture, by arm; in each round every arm draws the same prompt."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(WARM_UP + rounds):
        prompt = PROMPT[: 1 + number % len(PROMPT)]
        order = list(arms)
        random.Random(number).shuffle(order)
        for name in order:
            seconds = timed(lambda name=name, prompt=prompt: arms[name](prompt), device)
            if number >= WARM_UP:
                taken[name].append(seconds)
    return taken


def timed(draw: Callable[[], Any], device: str) -> float:
    """Return the seconds until the picture is there."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begun = time.perf_counter()
    draw()
    return time.perf_counter() - begun


def summed(taken: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return each arm's median, and the ratio of its rounds to the live ones': median, and where nine of ten lie."""
    found: dict[str, dict[str, Any]] = {}
    for arm, seconds in taken.items():
        found[arm] = {"name": ARMS[arm], "median_ms": round(1000 * statistics.median(seconds), 2)}
        found[arm] |= {"min_ms": round(1000 * min(seconds), 2)}
        if arm != "live" and "live" in taken:
            found[arm]["times_live"] = spread(seconds, taken["live"])
    return found


def spread(seconds: Sequence[float], live_seconds: Sequence[float]) -> dict[str, float]:
    """Return the median of the rounds' ratios, and where nine of ten lie."""
    ratios = np.array(seconds) / np.array(live_seconds)
    low, median, high = (round(float(x), 3) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
    return {"low": low, "median": median, "high": high}


if __name__ == "__main__":
    main()
