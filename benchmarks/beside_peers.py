"""Limner beside the bare floor and other trainers: `python -m benchmarks.beside_peers --base FOLDER --out FILE ...`.

FOLDER is what `python -m benchmarks.full_size make --family sd15 --out FOLDER` (or `--family sdxl`) wrote, or your own
SD 1.5 or SDXL. The peers are given as folders of their checkouts (`--diffusers DIR --sd-scripts DIR --onetrainer DIR`,
each may be left out), with the Python that has what they require where it is another one (`--sd-scripts-python FILE`).
In each round all train the same pictures on the CPU, one after the other, in a process of its own with empty caches,
watched from outside (Linux); the order turns with the rounds. After each process FILE is written: the whole can be
stopped and gone on with. On a machine that does other work at the same time the processor's seconds are the ones to
read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import contenders
from benchmarks.about import about
from benchmarks.contenders import PEERS, Call, Task
from benchmarks.full_size_training import make_pictures
from benchmarks.ratios import FLOOR, LIMNER, Run, musts, ratios, row_of, table
from benchmarks.watched import last_lines, watch

STANDIN = Path(__file__).parent / "standin"
"""What stands in for torchvision where a peer's Python has none that can be imported."""
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
ASKED = f"""
import importlib.metadata as m, json, platform
found = {{"python": platform.python_version()}}
for name in {LIBRARIES!r}:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
try:
    import torchvision.transforms, torchvision.io
except Exception:
    found["torchvision"] = None
print(json.dumps(found))
"""
"""Asks a Python for its versions."""


def main() -> None:
    """Parse the command line, measure round by round, write and print what came of it."""
    given = _parser().parse_args()
    result = _begun(_task_of(given), given.out)
    calls = _contenders(given, result["contenders"])
    names = list(calls)
    with tempfile.TemporaryDirectory() as place:
        pictures = Path(place) / "pictures"
        make_pictures(pictures, given.resolution, given.pictures)
        for number in range(given.rounds):
            if len(result["rounds"]) == number:
                result["rounds"].append({"runs": {}})
            runs, turn = result["rounds"][number]["runs"], number % len(names)
            for name in (*names[turn:], *names[:turn]):
                if "error" not in runs.get(name, {"error": "not measured yet"}):
                    continue
                work = Path(place) / f"{number}-{names.index(name)}"
                work.mkdir()
                task = Task(
                    given.base.resolve(), pictures, given.pictures, work, given.resolution, given.steps, given.rank,
                    given.precision,
                )  # fmt: skip
                wait_for_memory(given.free_gb)
                row = measured(calls[name](task), result["contenders"][name])
                runs[name] = {**row, "load_average": round(os.getloadavg()[0], 1), "date": about()["date"]}
                print(f"round {number + 1}, {name}: {json.dumps(runs[name])}", flush=True)
                _write(result, given.out)
            print("\n".join(table(_runs(result))), flush=True)


def _begun(task: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Return what was measured of the same task so far and is to be gone on with, or nothing yet."""
    if out and out.exists():
        known = json.loads(out.read_text(encoding="utf-8"))
        if known["task"] != task:
            raise SystemExit(f"--out {out}: holds another task ({known['task']}). Name another file.")
        return known
    return {**about(), "task": task, "contenders": {}, "rounds": []}


def _runs(result: dict[str, Any]) -> list[dict[str, Run]]:
    return [each["runs"] for each in result["rounds"]]


def _write(result: dict[str, Any], out: Path | None) -> None:
    """Write what is measured so far, with its ratios."""
    result |= {"ratios": ratios(_runs(result)), "must_hold": musts(_runs(result))}
    if out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside_peers", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="a diffusers folder of SD 1.5 or SDXL")
    for peer in ("diffusers", "sd-scripts", "onetrainer"):
        parser.add_argument(f"--{peer}", type=Path, metavar="DIR", help="its checkout")
        parser.add_argument(f"--{peer}-python", default=sys.executable, metavar="FILE", help="the Python that runs it")
    parser.add_argument("--only", nargs="+", choices=[LIMNER, FLOOR, *PEERS], metavar="NAME", help="measure these only")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--free-gb", type=float, default=0.0, help="wait before each process until so much is free")
    parser.add_argument("--out", type=Path, help="write the result there after each round")
    return parser


def _task_of(given: argparse.Namespace) -> dict[str, Any]:
    asked = ("resolution", "precision", "rank", "steps", "pictures")
    weights = {file.parent.name: file.stat().st_size for file in sorted(given.base.rglob("*.safetensors"))}
    return {
        **{name: getattr(given, name) for name in asked}, "batch": 1, "device": "cpu", "base_bytes": weights,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"), "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def _contenders(given: argparse.Namespace, told: dict[str, Any]) -> dict[str, Callable[[Task], Call]]:
    """Return how each that is asked for is called, by name; write down in `told` what it is."""
    calls: dict[str, Callable[[Task], Call]] = {LIMNER: contenders.limner, FLOOR: contenders.floor}
    told |= {LIMNER: {"limner": commit_of(Path(__file__).parent), "versions": versions(sys.executable)}, FLOOR: {}}
    for name, (whose, peer) in PEERS.items():
        key = whose.replace("-", "_")
        checkout, python = getattr(given, key), getattr(given, f"{key}_python")
        if checkout is None:
            continue
        if not checkout.is_dir():
            raise SystemExit(f"--{whose} {checkout}: there is no such folder. Give the peer's checkout.")
        told[name] = {"commit": commit_of(checkout), "versions": versions(python)}
        if told[name]["versions"].get("torchvision") is None:
            told[name]["torchvision"] = "a stand-in"
        calls[name] = partial(peer, checkout=checkout.resolve(), python=python)
    return {name: call for name, call in calls.items() if not given.only or name in given.only}


def wait_for_memory(free_gb: float, every_s: float = 5.0) -> None:
    """Wait until the machine has so much memory available: what others use would go to the disk and back."""
    while psutil.virtual_memory().available < free_gb * 1e9:
        time.sleep(every_s)


def versions(python: str) -> dict[str, str | None]:
    """Return the versions of what a Python has; torchvision's is None where it cannot be imported."""
    said = subprocess.run([python, "-c", ASKED], capture_output=True, text=True, env=_environment(None), check=False)
    if said.returncode:
        raise SystemExit(f"{python}: {last_lines(said.stderr)}")
    return json.loads(said.stdout.splitlines()[-1])


def commit_of(checkout: Path) -> str:
    """Return the commit that a folder is a checkout of."""
    said = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "no git checkout"


def measured(call: Call, told: Mapping[str, Any]) -> Run:
    """Run one contender; return what it took, or how it failed."""
    environment = _environment(STANDIN if told.get("torchvision") else None, own="commit" not in told)
    seen = watch(call.command, call.steps, environment={**environment, **call.environment}, cwd=call.cwd, log=call.log)
    return row_of(seen, " ".join(call.command))


def _environment(path: Path | None, *, own: bool = False) -> dict[str, str]:
    """Return the environment of a process: no network, no GPU, and of our own modules only where it is ours."""
    given = {name: value for name, value in os.environ.items() if own or name != "PYTHONPATH"}
    fixed = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false",
             "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    return {**given, **fixed, **({"PYTHONPATH": str(path)} if path else {})}


if __name__ == "__main__":
    main()
