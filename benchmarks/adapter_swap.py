"""How long swapping one LoRA for another takes on SDXL's full-size UNet: `python -m benchmarks.adapter_swap`.

The layers have their full shapes and no weights behind them: a swap touches none. Two LoRAs of all 722 layers of the
transformers (attention, feed-forward, projections) are loaded once and then set in turn; what is timed is `set`,
in processor time (one thread, so that is the wall's time on a processor of one's own).
Memory is counted after the first swaps and after the last.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.full_size import make_without_weights
from limner.adapter_set import AdapterSet
from limner.adapters.lora import LoRA
from limner.adapters.strength import Strength
from limner.export.diffusers_lora import write_lora
from limner.families.family import Family
from limner.families.load import sketch
from limner.rundir import write_json

TARGETS = "transformer"


def main() -> None:
    """Parse the command line, swap, print the times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapter_swap", description=__doc__)
    parser.add_argument("--family", choices=("sd15", "sdxl"), default="sdxl")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        family = _without_weights(given.family, Path(folder, "base"))
        files = [
            _write(family, Path(folder, f"{name}.safetensors"), given.rank, seed) for seed, name in enumerate("ab")
        ]
        found = {
            "family": given.family, "rank": given.rank, "torch": torch.__version__, "processor": platform.machine(),
            "threads": torch.get_num_threads(), **measure(family, files, given.swaps),
        }  # fmt: skip
    for name, value in found.items():
        print(f"{name}: {value}")
    if given.out:
        write_json(given.out, found)


def measure(family: Family, files: list[Path], swaps: int) -> dict[str, Any]:
    """Return processor times in milliseconds and the growth of memory in MiB."""
    adapters = AdapterSet(family)
    began = time.process_time()
    a, b = (adapters.load(file) for file in files)
    loading = (time.process_time() - began) / 2
    choices: list[dict[str, float | Strength]] = [{a: 1.0}, {b: 0.8}]
    before = _rss()
    swapped = _times(adapters, choices, 20)
    steady = _rss()
    swapped = _times(adapters, choices, swaps)
    after = _rss()
    adapters.set({a: 1.0})
    again = _times(adapters, [{a: 0.5}, {a: Strength(1.0, {"up": 0.3, "mid": 0.0})}], 40)
    adapters.set({})
    return {
        "layers": len(LoRA(targets=TARGETS).find_targets({"unet": family.unet})),
        "swap_ms": _summed(swapped), "strength_ms": _summed(again), "load_ms": round(1000 * loading, 1),
        "swaps": swaps, "first_swaps_mib": round(steady - before, 1), "growth_mib": round(after - steady, 1),
    }  # fmt: skip


def _without_weights(name: str, folder: Path) -> Family:
    make_without_weights(folder, name)
    family = sketch(str(folder), dtype=torch.bfloat16)
    family.unet.to_empty(device="cpu")  # the system gives it pages when something is written there: never
    return family


def _times(adapters: AdapterSet, choices: list[dict[str, float | Strength]], times: int) -> list[float]:
    found: list[float] = []
    for number in range(times):
        began = time.process_time()  # other programs' turns on this processor are not counted
        adapters.set(choices[number % len(choices)])
        found.append(1000 * (time.process_time() - began))
    return found


def _summed(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    names = {"median": statistics.median(ordered), "p05": ordered[len(ordered) // 20],
             "p95": ordered[-1 - len(ordered) // 20], "longest": ordered[-1]}  # fmt: skip
    return {name: round(value, 2) for name, value in names.items()}


def _rss() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def _write(family: Family, path: Path, rank: int, seed: int) -> Path:
    draws = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, layer in LoRA(targets=TARGETS).find_targets({"unet": family.unet}).items():
        out, *inside = layer.weight.shape
        state[f"{name}.lora_A"] = torch.randn(rank, *inside, generator=draws)
        state[f"{name}.lora_B"] = 0.01 * torch.randn(out, rank, generator=draws)
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    write_lora(state, path, {"family": family.kind}, dtype=torch.float16)
    return path


if __name__ == "__main__":
    main()
