"""What `limner plan` says against what runs take: `python -m benchmarks.plan_accuracy [--full-size FOLDER]`.

Every run is a process of its own on the CPU; its log has the peak memory and the seconds of each phase (VmHWM, reset
for each; Linux). Of full-size SD 1.5 (FOLDER: see benchmarks.full_size) one method is run, and for the others the
committed rows of benchmarks.full_size_training are compared: the process's own memory while it trained, with the
libraries' pages added. Memory is to be within 15 %; time is told, and not promised.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.full_size_training import METHODS, WITH_PRIOR, make_pictures

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
LIBRARY_PAGES = 0.12 * GIB
"""Pages of the libraries' files that a training process has in memory: no part of its anonymous memory."""
PHASES = ("load", "class pictures", "prepare", "train")
ADAFACTOR = ["optimizer.kind=adafactor", "optimizer.fused_backward=true", "optimizer.max_grad_norm=0"]
CASES: dict[str, list[str]] = {
    "lora, batch 1": ["--recipe", "lora"],
    "lora, batch 4": ["--recipe", "lora", "batch=4"],
    "lora, batch 4, checkpointing": ["--recipe", "lora", "batch=4", "gradient_checkpointing=true"],
    "lora, batch 16": ["--recipe", "lora", "batch=16"],
    "lora, batch 16, checkpointing": ["--recipe", "lora", "batch=16", "gradient_checkpointing=true"],
    "dreambooth, batch 1": ["--recipe", "dreambooth", "prior.count=8"],
    "dreambooth, batch 4": ["--recipe", "dreambooth", "prior.count=8", "batch=4"],
    "dreambooth, batch 4, bfloat16": ["--recipe", "dreambooth", "prior.count=8", "batch=4", "precision=bfloat16"],
    "dreambooth, batch 4, Adafactor, fused": ["--recipe", "dreambooth", "prior.count=8", "batch=4", *ADAFACTOR],
    "dreambooth-lora, batch 4": ["--recipe", "dreambooth-lora", "prior.count=8", "batch=4"],
    "textual-inversion, batch 4": ["--recipe", "textual-inversion", "optimizer.warmup_steps=0"],
    "pivotal, batch 4": ["--recipe", "pivotal", "prior.count=8", "batch=4"],
}
"""Runs on the embedded base."""
PREVIEWS = ["preview.every_steps=3", "preview.images=1", "generation.num_inference_steps=2"]
FULL_SIZE = {
    "": PREVIEWS, ", checkpointing": ["gradient_checkpointing=true", *PREVIEWS], ", unload": ["unload=true"],
    ", checkpointing, unload": ["gradient_checkpointing=true", "unload=true"],
}  # fmt: skip
"""LoRA on full-size SD 1.5: with previews between the steps, and without, for which all parts would be there."""
COMMON = ["steps=4", "device=cpu", "pictures.class_noun=thing", "checkpoint.every_steps=0"]


def main() -> None:
    """Measure all cases, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_accuracy", description=__doc__)
    parser.add_argument("--full-size", type=Path, help="full-size SD 1.5, to run LoRA on; without it, only the log")
    parser.add_argument("--results", type=Path, default=RESULTS / "plan_accuracy.json")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for side in (64, 256):
            make_pictures(Path(place, str(side)), side, 5 if side == 64 else 3)
        for name, words in CASES.items():
            rows += tell(compare(name, Path(place, "64"), [*words, *COMMON, "base=tiny"]))
            given.results.write_text(json.dumps(rows, indent=1) + "\n")
        rows += tell(logged(Path(place, "256")))
        given.results.write_text(json.dumps(rows, indent=1) + "\n")
        if given.full_size:
            half = [f"base={given.full_size}", "precision=bfloat16", "resolution=256", "generation.batch=1"]
            for name, more in FULL_SIZE.items():
                words = ["--recipe", "lora", *COMMON, *half, *more]
                rows += tell(compare(f"SD 1.5, 256 px, bfloat16: lora{name}", Path(place, "256"), words))
                given.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(given.results)


def tell(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows and return them."""
    for row in rows:
        memory = f"{row['predicted_gib']:>7.3f}{row['measured_gib']:>7.3f} GiB{row['ratio']:>7.3f}"
        seconds = f"{row['predicted_s'] or 0:>10.2f}{row['measured_s']:>8.2f} s"
        print(f"{row['case']:<62}{row['phase']:<16}{memory}{seconds}", flush=True)
    return rows


def compare(case: str, pictures: Path, words: list[str]) -> list[dict[str, Any]]:
    """Plan a run, make it, and return a row per phase."""
    planned = plan(pictures, words)
    with tempfile.TemporaryDirectory() as run, tempfile.TemporaryDirectory() as cache:
        os.environ["LIMNER_CACHE"] = cache  # nothing is there already
        limner("train", str(pictures), *words, "--run", run)
        log = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    peaks, seconds = measured(log)
    if "preview" in planned and planned["preview"]["memory_gib"] > planned["train"]["memory_gib"]:
        planned["train"] |= {"memory_gib": planned["preview"]["memory_gib"]}  # they are drawn while it trains
    return [
        a_row(case, phase, peaks[phase], seconds[phase]) | against(planned[phase], peaks[phase])
        for phase in PHASES
        if phase in peaks
    ]


def measured(log: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the peak memory (GiB) and the seconds of every phase in a run's log.

    A base may be read in two pieces, which are one phase of the plan; a step on trial is a part of the training.
    """
    peaks, seconds = dict[str, float](), dict[str, float]()
    for row in log:
        if row["event"] == "phase":
            name = row["name"]
            peaks[name] = max(peaks.get(name, 0), row["peak_memory_gib"])
            seconds[name] = seconds.get(name, 0) + row["seconds"]
    peaks["train"] = max(peaks["train"], peaks.pop("probe", 0))
    return peaks, seconds


def logged(pictures: Path) -> list[dict[str, Any]]:
    """Compare the plan of full-size SD 1.5 with the committed measurements; its configurations are enough."""
    from limner.families.source import ASSETS

    rows = []
    for known in json.loads((RESULTS / "full_size_training.json").read_text()):
        if known["precision"] == "bfloat16" and known["resolution_px"] == 256:
            method = known["method"]
            words = [*METHODS[method], *COMMON, f"base={ASSETS / 'sd15'}", "precision=bfloat16", "resolution=256",
                     "batch=1", *(["prior.count=2"] if method in WITH_PRIOR else [])]  # fmt: skip
            planned = plan(pictures, words)["train"]
            peak = (known["training_anonymous_gb"] * 1e6 * 1024 + LIBRARY_PAGES) / GIB  # the log's GB are 10^6 KiB
            seconds = known["wall_seconds_per_step"] * 4
            case = f"SD 1.5, 256 px, bfloat16: {method} (log)"
            rows.append(a_row(case, "train", peak, seconds) | against(planned, peak))
    return rows


def a_row(case: str, phase: str, peak_gib: float, seconds: float) -> dict[str, Any]:
    """Return what was measured."""
    return {"case": case, "phase": phase, "measured_gib": round(peak_gib, 3), "measured_s": round(seconds, 2),
            "date": f"{datetime.now(UTC):%Y-%m-%d}"}  # fmt: skip


def against(planned: dict[str, Any], peak_gib: float) -> dict[str, Any]:
    """Return what was planned beside it."""
    seconds = planned["seconds"]
    return {"predicted_gib": round(planned["memory_gib"], 3), "ratio": round(planned["memory_gib"] / peak_gib, 3),
            "predicted_s": None if seconds is None else round(seconds, 2)}  # fmt: skip


def plan(pictures: Path, words: list[str]) -> dict[str, dict[str, Any]]:
    """Return the planned phases by name."""
    return {row["phase"]: row for row in json.loads(limner("plan", str(pictures), *words))["phases"]}


def limner(*words: str) -> str:
    """Run a verb in a process of its own and return its line of JSON."""
    command = [sys.executable, "-m", "limner", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
