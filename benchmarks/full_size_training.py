"""Real training steps of every method at full size: `python -m benchmarks.full_size_training --base FOLDER`.

FOLDER is what `python -m benchmarks.full_size make --family sd15|sdxl|sdxl-refiner --out FOLDER` wrote. Each method
runs in a process of its own, from pictures to the finished file, watched from outside (Linux). Every row is written as
soon as it is measured, and rows that are there already are not measured again, so the whole can be stopped and gone on
with. On a machine that does other work at the same time the processor's seconds are the ones to read.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.watched import usage
from limner.families.recognise import recognise

METHODS: dict[str, list[str]] = {
    "lora": ["--recipe", "lora"],
    "tiny-adapter": ["--recipe", "tiny-adapter"],
    "lora, rank 64 on all layers": ["--recipe", "lora", "adapter.rank=64", "adapter.targets=all"],
    "few-step": ["--recipe", "few-step"],
    "dreambooth-lora": ["--recipe", "dreambooth-lora"],
    "textual-inversion": ["--recipe", "textual-inversion", "optimizer.warmup_steps=0"],
    "pivotal": ["--recipe", "pivotal"],
    "dreambooth": ["--recipe", "dreambooth"],
    "dreambooth, gradient checkpointing": ["--recipe", "dreambooth", "gradient_checkpointing=true"],
    "dreambooth, Adafactor, fused backward": [
        "--recipe", "dreambooth", "optimizer.kind=adafactor", "optimizer.fused_backward=true",
        "optimizer.max_grad_norm=0",
    ],
}  # fmt: skip
"""What is measured, by recipe."""
WITH_PRIOR = [name for name in METHODS if name.startswith(("dreambooth", "pivotal"))]
SAID = (
    "family", "method", "precision", "resolution_px", "cpu_seconds_per_step", "training_anonymous_gb", "result_mb",
)  # fmt: skip
STEPS = 5
EVERY_S = 0.05


def main() -> None:
    """Measure what is asked for and not there yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size_training", description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--resolutions", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "full_size_training.json")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.results.read_text()) if given.results.exists() else []
    done = {(row["family"], row["method"], row["precision"], row["resolution_px"]) for row in rows}
    family = recognise(given.base).family
    for resolution in given.resolutions:
        for precision in given.precisions:
            for method in given.methods:
                if (family, method, precision, resolution) not in done:
                    row = {"family": family, **measure(method, given.base, precision, resolution)}
                    rows.append(row)
                    given.results.parent.mkdir(exist_ok=True)
                    given.results.write_text(json.dumps(rows, indent=1) + "\n")
                    print({key: row[key] for key in SAID}, flush=True)


def measure(
    method: str, base: str, precision: str, resolution_px: int, more: Sequence[str] = ("device=cpu",)
) -> dict[str, Any]:
    """Train a few steps in a process of its own, with further settings, and return what it took."""
    with tempfile.TemporaryDirectory() as place:
        pictures, class_pictures, run = (Path(place) / name for name in ("pictures", "class", "run"))
        make_pictures(pictures, resolution_px, 3)
        make_pictures(class_pictures, resolution_px, 2)
        prior = ["--class-pictures", str(class_pictures)] if method in WITH_PRIOR else []
        settings = [
            f"base={base}", f"precision={precision}", f"resolution={resolution_px}", f"steps={STEPS}", "batch=1",
            *more, "pictures.class_noun=thing", "checkpoint.every_steps=0",
        ]  # fmt: skip
        command = [sys.executable, "-m", "limner", "train", str(pictures), *METHODS[method], *settings,
                   *prior, "--run", str(run), "--json"]  # fmt: skip
        begun = time.perf_counter()
        with subprocess.Popen(command, env={**os.environ, "LIMNER_CACHE": f"{place}/cache"},
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
            peaks = watch(process, run / "log.jsonl")
            said = process.communicate()[1]
        if process.returncode or not peaks:
            raise SystemExit(f"{method}, {precision}, {resolution_px}: exit code {process.returncode}: {said}")
        seconds = time.perf_counter() - begun
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        known = json.loads((run / "provenance.json").read_text())
        steps = [row["seconds"] for row in log if row["event"] == "step"]
        phases = {row["name"]: round(row["peak_memory_gib"], 3) for row in log if row["event"] == "phase"}
        assert len(steps) == STEPS
        return {
            "method": method, "precision": precision, "resolution_px": resolution_px,
            "wall_seconds_per_step": round(statistics.median(steps[1:]), 2), "first_step_s": round(steps[0], 2),
            "whole_command_s": round(seconds, 1), **peaks, "phase_peaks_gib": phases,
            "trained_parameters": known["adapter"]["trainable_parameters"],
            "times_fewer": round(known["adapter"]["times_fewer"], 1),
            "result_mb": round(known["adapter"]["file_bytes"] / 1e6, 3),
            "command": "python -m benchmarks.full_size_training --base FOLDER",
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        }  # fmt: skip


def watch(process: subprocess.Popen[str], log: Path) -> dict[str, float]:
    """Return peaks of memory in GB (in all, anonymous, anonymous while it trains) and processor seconds per step."""
    anonymous = training = total = 0.0
    at_step: dict[int, float] = {}
    while process.poll() is None and (now := usage(process.pid)):
        anonymous, total = max(anonymous, now.anonymous_gb), max(total, now.total_gb)
        steps = log.read_text().count('"event": "step"') if log.is_file() else 0
        if steps:
            training = max(training, now.anonymous_gb)
            at_step.setdefault(steps, now.cpu_s)
        time.sleep(EVERY_S)
    if len(at_step) < 2:
        return {}
    each = [(at_step[b] - at_step[a]) / (b - a) for a, b in pairwise(sorted(at_step))]
    return {  # the median: between the first two steps pictures may still be encoded
        "cpu_seconds_per_step": round(statistics.median(each), 2),
        "peak_gb": round(total, 2), "peak_anonymous_gb": round(anonymous, 2),
        "training_anonymous_gb": round(training, 2),
    }  # fmt: skip


def make_pictures(folder: Path, side_px: int, number: int) -> None:
    """Write a few pictures of coarse noise, all different."""
    folder.mkdir()
    for i in range(number):
        draws = np.random.default_rng([len(folder.name), i])
        coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side_px, side_px), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


if __name__ == "__main__":
    main()
