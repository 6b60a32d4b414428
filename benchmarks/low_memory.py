"""What each measure against too little memory gains and costs: `python -m benchmarks.low_memory --base FOLDER`.

FOLDER is what `python -m benchmarks.full_size make --family sd15|sdxl --out FOLDER` wrote. LoRA trains a few steps at
full size, in a process of its own for each rung of the ladder: on a CPU its anonymous memory is watched from outside
(Linux), on a GPU the allocator's peak is read from the run's log. Rows that are there already are not measured again.
The processor's seconds are the ones to read on a machine that does other work; those of a GPU are the wall's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.full_size_training import measure
from limner.families.recognise import recognise

LEAN = "gradient_checkpointing=true"
RUNGS: dict[str, tuple[str, ...]] = {
    "all parts stay": ("unload=false",),
    "as it is": (),
    "checkpointing": (LEAN,),
    "int8": (LEAN, "base_storage=int8"),
    "float8": (LEAN, "base_storage=float8"),
    "nf4": (LEAN, "base_storage=nf4"),
}
"""What is measured, by settings. Each stands on the rungs before it; of the storages one is taken."""


def main() -> None:
    """Measure what is asked for and not there yet; print each rung beside the one before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.low_memory", description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), metavar="RUNG")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "low_memory.json")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.results.read_text()) if given.results.exists() else []
    about = {"family": recognise(given.base).family, "device": given.device, "precision": given.precision,
             "resolution_px": given.resolution}  # fmt: skip
    done = {row["rung"]: row for row in rows if about.items() <= row.items()}
    for rung in given.rungs:
        if rung not in done:
            words = (f"device={given.device}", *RUNGS[rung])
            row = measure("lora", given.base, given.precision, given.resolution, words)
            row = {**about, "rung": rung, "settings": RUNGS[rung], **row,
                   "command": "python -m benchmarks.low_memory --base FOLDER"}  # fmt: skip
            rows.append(row)
            given.results.write_text(json.dumps(rows, indent=1) + "\n")
            done[rung] = row
        print(told(rung, done), flush=True)


def told(rung: str, done: dict[str, dict[str, Any]]) -> str:
    """Return one rung's memory and time in words, each also as a share of the first rung's."""
    row, first = done[rung], done.get("as it is", done[rung])
    memory, seconds = memory_gb(row), seconds_of(row)
    return (f"{rung:<16}{memory:>8.2f} GB {memory / memory_gb(first):>6.0%}{seconds:>9.2f} s/step "
            f"{seconds / seconds_of(first):>6.0%}")  # fmt: skip


def memory_gb(row: dict[str, Any]) -> float:
    """Return the peak of the training: on a CPU of the process's own memory, on a GPU of its allocator."""
    if row["device"] == "cpu":
        return row["training_anonymous_gb"]
    return max(row["phase_peaks_gib"][phase] for phase in ("probe", "train")) * 2**30 / 1e9


def seconds_of(row: dict[str, Any]) -> float:
    """Return the seconds of a step: on a CPU the processor's."""
    return row["cpu_seconds_per_step"] if row["device"] == "cpu" else row["wall_seconds_per_step"]


if __name__ == "__main__":
    main()
