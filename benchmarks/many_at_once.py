"""Four subjects at once against four runs one after another: `python -m benchmarks.many_at_once [--out FILE]`.

On the embedded base, from the command line to the last file, start-up included; every run is a process of its own with
a cache of its own, so that pictures are encoded each time. In each round both arms have their turn, first the one and
then the other. On a machine that does other work at the same time the processor's seconds are the ones to read.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.about import about
from limner.families.source import ASSETS

SUBJECTS = ("critter", "robot", "plant", "clay_figure")
Round = dict[str, dict[str, float]]
"""What each arm took: wall and processor seconds of all its processes, and the largest one's peak memory."""
SETTINGS = ("base=tiny", "adapter.targets=all", "learning_rate=1e-3", "adapter.save_precision=float32")


def main() -> None:
    """Parse the command line, measure, print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_at_once", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, help="write the result there too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        subjects = Path(place) / "subjects"
        for number, name in enumerate(SUBJECTS):
            shutil.copytree(ASSETS / "demo" / name, subjects / f"{'abcd'[number]}ks {name.replace('_', ' ')}")
        rounds: list[Round] = []
        for number in range(given.rounds):
            rounds.append(measure(subjects, Path(place), given.steps, number))
            result = told(rounds, given.steps)
            print(json.dumps(result, indent=1), flush=True)
            if given.out:  # after each round, so that what is measured is not lost
                given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def told(rounds: list[Round], steps: int) -> dict[str, Any]:
    """Return what was measured, and by how much one arm is faster."""
    ratios = {f"ratio_{what}": spread([r["together"][what] / r["one_after_another"][what] for r in rounds])
              for what in ("cpu_s", "wall_s")}  # fmt: skip
    return {
        **about(),
        "load_average": os.getloadavg(), "subjects": len(SUBJECTS), "steps": steps, **ratios, "rounds": rounds,
    }  # fmt: skip


def measure(subjects: Path, place: Path, steps: int, number: int) -> Round:
    """Have each arm do the whole, the one that goes first by turns."""

    def together() -> dict[str, float]:
        return run(place / f"{number}-together", steps, "--subjects", str(subjects))

    def one_after_another() -> dict[str, float]:
        found: list[dict[str, float]] = []
        for folder in sorted(subjects.iterdir()):
            token, _, noun = folder.name.partition(" ")
            named = (f"pictures.token={token}", f"pictures.class_noun={noun}")
            found.append(run(place / f"{number}-{token}", steps, str(folder), *named))
        return {what: (max if what == "peak_gib" else sum)(one[what] for one in found) for what in found[0]}

    arms = {"together": together, "one_after_another": one_after_another}
    order = list(arms) if number % 2 else list(reversed(arms))
    return {name: arms[name]() for name in order}


def run(place: Path, steps: int, *words: str) -> dict[str, float]:
    """Train in a process of its own; return its wall and processor seconds and its peak memory."""
    place.mkdir()
    command = [
        sys.executable,
        "-m",
        "limner",
        "train",
        *words,
        "--run",
        str(place / "run"),
        *SETTINGS,
        f"steps={steps}",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "LIMNER_CACHE": str(place / "cache")},
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # fmt: skip
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    shutil.rmtree(place)
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(processor_seconds(used), 2),
        "peak_gib": round(used.ru_maxrss / 2**20, 3),
    }


def processor_seconds(used: resource.struct_rusage) -> float:
    """Return the seconds that a process has computed, for itself and in the system."""
    return used.ru_utime + used.ru_stime


def spread(ratios: list[float]) -> dict[str, float]:
    """Return the median of some ratios, and the smallest and the largest."""
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


if __name__ == "__main__":
    main()
