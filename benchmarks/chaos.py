"""Kill a run again and again, and let its disk fail: `python -m benchmarks.chaos --kills 100 [--seed S] [--out FILE]`.

Real processes run Limner's own command line on a very small base with random weights: class pictures, text encoder
training, checkpoints, previews, a cache of their own, then evaluation and report. They are killed (-9) by the clock
and inside the operations on files of every kind, and such operations are made to fail. Each is gone on with until it
is done; what was trained must then be, byte for byte, that of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

from benchmarks.about import about
from benchmarks.launcher import FAULTS, KILLS, Disturbance, Ended, Running, warm_up

STAGES = {"train": 8, "evaluate": 3, "report": 1}
"""What is done with a run, and how often each may be disturbed before it is left to end."""
SETTINGS = (
    "batch=2", "prior.count=3", "generation.num_inference_steps=2", "checkpoint.every_steps=2", "checkpoint.keep=3",
    "preview.every_steps=3", "preview.images=1", "evaluation.images_per_prompt=1",
    "evaluation.images_per_class_prompt=1",
)  # fmt: skip
FINISHED, REFUSED = "is already finished", "cannot be written"


class Chaos:
    """Runs in one folder: a first one that nothing disturbs, and others that must end as it did."""

    def __init__(self, place: Path, *, seed: int, steps: int, stages: tuple[str, ...]) -> None:
        self.place, self.steps, self.stages = place, steps, stages
        self.draws = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.tried: Counter[tuple[tuple[str, ...], str]] = Counter()
        self.runs, self.refused = 0, False
        self.base = make_base(place / "base")
        self.undisturbed = {stage: self._launch(stage, place / "whole", None) for stage in stages}
        for stage, ended in self.undisturbed.items():
            assert ended.code == 0, f"{stage}, undisturbed: exit code {ended.code}: {ended.said}"

    def disturb(self, kills: int, faults: int) -> None:
        """Begin runs and disturb them until there are so many kills and faults; finish each and compare."""
        while self.kills.total() < kills or self.faults.total() < faults:
            self.runs += 1
            self.refused = False
            where = self.place / f"{self.runs}"
            for stage in self.stages:
                self._finish(stage, where, kills, faults)
            self._compare(where)

    def _finish(self, stage: str, where: Path, kills: int, faults: int) -> None:
        """Run a stage of a run to its end, through as many disturbances as befall it."""
        for attempt in count():
            disturbance = self._next(stage, kills, faults) if attempt < STAGES[stage] else None
            ended = self._launch(stage, where, disturbance)
            about = f"{where}, {stage}, {disturbance}: exit code {ended.code}: {ended.said}"
            if disturbance and ended.code == -9:
                self.kills[f"{ended.phase or 'begin'}: {disturbance.place or 'by the clock'}"] += 1
            elif disturbance and ended.befell:
                self.faults[f"{disturbance.action}: {disturbance.place}"] += 1
                self.refused |= disturbance.place == "checkpoint"
            if ended.code == 0 or FINISHED in ended.said:
                return
            assert ended.code in (-9, 2), about
            assert ended.code == -9 or REFUSED in ended.said.strip().splitlines()[-1], about

    def _next(self, stage: str, kills: int, faults: int) -> Disturbance | None:
        """Choose what happens next: mostly at an operation on files, of a kind that was chosen least."""
        kinds = [KILLS] * (self.kills.total() < kills) + [FAULTS] * (self.faults.total() < faults)
        if not kinds:
            return None
        known, actions = self.undisturbed[stage], self.draws.choice(kinds)
        if actions is KILLS and self.draws.random() < 0.25:
            return Disturbance("kill", after_s=self.draws.uniform(0.05, known.seconds))
        counts = Counter(known.operations)
        place = min(sorted(counts), key=lambda place: (self.tried[actions, place], self.draws.random()))
        self.tried[actions, place] += 1
        nth = int(counts[place] * self.draws.random() ** 2)  # a run that is gone on with has fewer of them
        return Disturbance(
            self.draws.choice(actions), place, nth, self.draws.choice((1, 3, 10)) if actions is FAULTS else 1
        )

    def _launch(self, stage: str, where: Path, disturbance: Disturbance | None) -> Ended:
        """Run a stage: what was begun is gone on with."""
        from limner.families.source import ASSETS

        folder = where / "run"
        words = [stage, str(folder)]
        if stage == "train" and (folder / "recipe.toml").is_file():
            words = ["train", "--resume", str(folder)]
        elif stage == "train":
            words = ["train", str(ASSETS / "demo" / "critter"), "--recipe", "demo", "--run", str(folder)]
            words += [f"base={self.base}", f"steps={self.steps}", *SETTINGS]
        return Running(words, where / "scratch", cache=where / "cache", disturbance=disturbance).wait()

    def _compare(self, where: Path) -> None:
        """Make sure that a run ended as the undisturbed one did, and that nothing half-made lies about."""
        whole, found = (outcome(folder / "run") for folder in (self.place / "whole", where))
        names = whole.keys() | found.keys()
        if self.refused:  # the last checkpoints may be earlier ones, or none
            names = {n for n in names if not n.startswith("checkpoints/") or (n in whole and n in found)}
        different = sorted(name for name in names if found.get(name) != whole.get(name))
        assert not different, f"{where}: {different} are not those of the undisturbed run"
        left = [path for path in where.rglob(".*") if path.name != ".lock"]
        assert not left, f"{where}: {left} are left"


def make_base(folder: Path) -> Path:
    """Make the base in a process of its own, so that its computing leaves no threads behind in this one."""
    child = os.fork()
    if child == 0:
        from tests.random_base import make_random_base

        make_random_base(folder)
        os._exit(0)
    os.waitpid(child, 0)
    return folder


def outcome(folder: Path) -> dict[str, object]:
    """Return what must be the same: adapter, checkpoints, the comparison's pictures, the log but for measurements."""
    from limner.rundir import RunDir

    files = [folder / "adapter.safetensors", *folder.glob("checkpoints/step-*/*"), *folder.glob("images/*/*.png")]
    run = RunDir(folder)  # a line of the log that a kill cut short is none
    log = [*run.read_log("step"), *run.read_log("validation")]
    measured = ("seconds", "memory_gib")
    steps = [{key: value for key, value in row.items() if key not in measured} for row in log]
    return {"log.jsonl": steps} | {str(file.relative_to(folder)): file.read_bytes() for file in files}


def main() -> None:
    """Parse the command line, disturb, print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--faults", type=int, help="default: half as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, help="write the result there too")
    given = parser.parse_args()
    faults = given.kills // 2 if given.faults is None else given.faults
    warm_up()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        chaos = Chaos(Path(place), seed=given.seed, steps=given.steps, stages=tuple(given.stages))
        chaos.disturb(given.kills, faults)
    result = {
        **about(), "runs": chaos.runs, "kills": chaos.kills.total(), "faults": chaos.faults.total(),
        "seconds": round(time.perf_counter() - begun, 1), "kills_by_phase_and_file": dict(sorted(chaos.kills.items())),
        "faults_by_kind_and_file": dict(sorted(chaos.faults.items())),
    }  # fmt: skip
    print(json.dumps(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
