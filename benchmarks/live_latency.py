"""How fast a picture follows a prompt, live and with plain diffusers: `python -m benchmarks.live_latency`.

A LoRA (random weights unless --adapter names a file) and the LCM sampler draw the prompts that come up while one is
typed. All arms draw every prompt, in any order, in one process and on one set of files, so that what disturbs the
machine hits all alike; the ratios are of one round each. Needs no network: the base is a diffusers folder or "tiny".
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.export.diffusers_lora import write_lora
from limner.families.load import load
from limner.families.source import locate
from limner.generate.few_steps import FewSteps
from limner.live import live

PROMPT = "a photo of a small red critter with horns on a blue background"
LIVE = "Limner, live"
WARM_UP = 2


def main() -> None:
    """Measure, print one table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_latency", description=__doc__)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "live_latency.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = given.adapter or random_lora(given.base, Path(folder) / "lcm.safetensors", given.steps)
        taken = measure(given.base, adapter, given.device, given.steps, given.rounds)
    found = {
        "base": given.base, "steps": given.steps, "rounds": given.rounds, "device": given.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": "python -m benchmarks.live_latency", "arms": summed(taken),
    }  # fmt: skip
    given.results.write_text(json.dumps(found, indent=1) + "\n")
    for name, arm in found["arms"].items():
        ratio = arm.get("times_live")
        beside = f"   {ratio['median']:.2f} times as long [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
        print(f"{name:<24}{arm['median_ms']:>9.1f} ms{beside}")


def random_lora(base: str, path: Path, steps: int) -> Path:
    """Write a LoRA of random weights that says it is a few-step adapter: how fast it is does not depend on them."""
    family = load(base, dtype=torch.float32, device="cpu")
    adapter = LoRA(rank=64, targets="all").attach(family, [SlotSettings(seed=0)])
    write_lora(adapter.state_dict(), path, {**family.facts, "few_steps": FewSteps(steps=steps).model_dump(mode="json")})
    return path


def measure(base: str, adapter: Path, device: str, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every picture, by arm; in each round every arm draws the same prompt."""
    arms: dict[str, Callable[[str], Any]] = {
        "diffusers, unfused": plain(base, adapter, device, steps, fuse=False),
        "diffusers, fused": plain(base, adapter, device, steps, fuse=True),
    }
    settings = {"device": device, "precision": "float32", "generation.num_inference_steps": steps}
    with live(base, adapters=[(adapter, 1.0)], settings=settings) as drawn:
        arms[LIVE] = drawn.picture
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


def plain(base: str, adapter: Path, device: str, steps: int, *, fuse: bool) -> Callable[[str], Any]:
    """Return how diffusers draws a prompt with the adapter, set up once as its guide says."""
    from diffusers import DiffusionPipeline, LCMScheduler

    pipe: Any = DiffusionPipeline.from_pretrained(locate(base), dtype=torch.float32)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    if fuse:
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return lambda prompt: pipe(prompt, num_inference_steps=steps, guidance_scale=1.0).images[0]


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
    for name, seconds in taken.items():
        found[name] = {"median_ms": round(1000 * statistics.median(seconds), 2)}
        if name != LIVE:
            ratios = np.array(seconds) / np.array(taken[LIVE])
            low, median, high = (round(float(x), 3) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
            found[name]["times_live"] = {"low": low, "median": median, "high": high}
    return found


if __name__ == "__main__":
    main()
