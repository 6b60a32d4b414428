"""Real processes, forked from one that has imported everything: stopped, killed, failed by their disk, two at once.

`python -m tests.pipeline.disturbed FOLDER` does it all and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos import Chaos, make_base, outcome
from benchmarks.launcher import Running, warm_up

PHASES = {
    "check": signal.SIGINT, "load": signal.SIGTERM, "class pictures": signal.SIGHUP, "prepare": signal.SIGINT,
    "train": signal.SIGTERM, "draw base": signal.SIGHUP, "draw tuned": signal.SIGINT, "evaluate": signal.SIGTERM,
    "report": signal.SIGINT,
}  # fmt: skip
"""Every phase of a run in its order, and the signal that stops it."""
SETTINGS = (
    "steps=6", "batch=2", "prior.count=2", "generation.num_inference_steps=2", "checkpoint.every_steps=4",
    "adapter.targets=attention", "evaluation.images_per_prompt=1", "evaluation.images_per_class_prompt=1",
)  # fmt: skip


class Place:
    """A folder with a base, a cache and runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, make_base(folder / "base")

    def start(self, verb: str, name: str, cache: str = "cache", scratch: str = "scratch") -> Running:
        """Begin a verb on a run, or go on with it."""
        from limner.families.source import ASSETS

        run = self.folder / name / "run"
        words = [verb, str(run)]
        if verb == "train" and (run / "recipe.toml").is_file():
            words = ["train", "--resume", str(run)]
        elif verb == "train":
            words = ["train", str(ASSETS / "demo" / "critter"), "--recipe", "demo", "--run", str(run), *SETTINGS]
            words.append(f"base={self.base}")
        return Running(words, self.folder / name / scratch, cache=self.folder / cache)

    def stop_in(self, phase: str, name: str, verb: str, *, times: int = 1) -> dict[str, Any]:
        """Send a signal when a phase has begun; return how the process ended."""
        running = self.start(verb, name)
        while phase not in running.phases() and not running.has_ended():
            time.sleep(0.001)
        for _ in range(times):
            if not running.has_ended():
                os.kill(running.process, PHASES[phase])
            time.sleep(0.05)
        ended = running.wait()
        return {"code": ended.code, "said": ended.said, "phase": ended.phase}


def main(folder: Path) -> None:
    """Stop one run in every phase, each time going on with it; train two at once; compare with one left alone."""
    warm_up()
    place = Place(folder)
    found: dict[str, Any] = {"one signal": {}, "two signals": {}}
    whole = [place.start(verb, "whole", "own-cache").wait().code for verb in ("train", "evaluate", "report")]
    for phase in PHASES:
        later = list(PHASES).index(phase) - list(PHASES).index("train")
        verb = "train" if later <= 0 else "report" if phase == "report" else "evaluate"
        found["one signal"][phase] = place.stop_in(phase, "stopped", verb)
        if phase in ("train", "evaluate"):
            found["two signals"][phase] = place.stop_in(phase, "stopped", verb, times=2)
            found["one signal"][f"after {phase}"] = {"code": place.start(verb, "stopped").wait().code}
    both = [place.start("train", name, "shared-cache") for name in ("a", "b")]
    while not (folder / "a" / "run" / "recipe.toml").is_file():
        time.sleep(0.001)
    third = place.start("train", "a", "shared-cache", "third").wait()
    found["both at once"] = [running.wait().code for running in both]
    found["third"] = {"code": third.code, "said": third.said}
    found["whole"] = whole
    alone = outcome(folder / "whole" / "run")
    trained = {name: content for name, content in alone.items() if not name.startswith("images/")}
    found["as alone"] = {name: outcome(folder / name / "run") == trained for name in ("a", "b")}
    found["as alone"]["stopped"] = outcome(folder / "stopped" / "run") == alone
    found["left"] = [str(path) for path in folder.rglob(".*") if path.suffix in (".part", ".old")]
    chaos = Chaos(folder / "chaos", seed=3, steps=6, stages=("train",))
    chaos.disturb(10, 5)
    found["chaos"] = {"kills": chaos.kills, "faults": chaos.faults}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
