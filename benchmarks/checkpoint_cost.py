"""What a checkpoint costs beside the steps between two of them: `python -m benchmarks.checkpoint_cost [--out FILE]`.

The state is that of SD 1.5 at full size: a LoRA of several ranks with AdamW, and a part of the UNet as DreamBooth
trains it. Only what learns is saved, so the frozen weights are left empty and cost neither time nor memory. A step's
seconds on this machine's processor are from `results/full_size_training.json`; a fast GPU is taken to need 0.1 s.
What counts is how long the training waits; how long it takes until the checkpoint is on the disk stands beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.about import about
from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.families.source import ASSETS
from limner.files import bytes_of
from limner.objectives import Denoising
from limner.recipe import Checkpoint, Recipe
from limner.rundir import RunDir
from limner.stepping import Checkpoints, Spared
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.watch import Watch

STEPS = 100
"""Steps between two checkpoints, as the recipes have it."""
GPU_STEP_S = 0.1
ADAPTERS = {f"LoRA, rank {rank}": LoRA(rank=rank, targets="attention") for rank in (4, 8, 16)}
ADAPTERS |= {f"LoRA of all layers, rank {rank}": LoRA(rank=rank, targets="all") for rank in (4, 16)}
DREAMBOOTH = Full(targets=("unet.down_blocks.*",))
"""Not all of it: a whole one's state is 10.3 GB, and its time follows from its size."""
WHOLE_DREAMBOOTH = 859_520_964


class Empty:
    """SD 1.5's UNet without its weights: what an adapter asks of a base, and no more."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(ASSETS / "sd15" / "unet")))
        self.unet = unet.to_empty(device="cpu").requires_grad_(False)
        self.placeholders: dict[str, range] = {}
        self.identity: dict[str, str] = {}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Return what adapters attach to."""
        return {"unet": self.unet}

    def tokens(self, text: str) -> list[int]:
        """Return no tokens: nothing is read here."""
        return []


def main() -> None:
    """Parse the command line, measure, print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--at", type=Path, help="the disk to measure: a folder on it (default: the one for temporary files)"
    )
    parser.add_argument("--out", type=Path, help="write the result there too")
    given = parser.parse_args()
    known = json.loads((Path(__file__).parent / "results" / "full_size_training.json").read_text())
    step_s = {row["method"]: row["wall_seconds_per_step"] for row in known if row["resolution_px"] == 256}
    rows = [measure(name, adapter, step_s["lora"], given.rounds, given.at) for name, adapter in ADAPTERS.items()]
    rows.append(measure("DreamBooth, a part", DREAMBOOTH, step_s["dreambooth"], max(2, given.rounds // 5), given.at))
    whole = rows[-1]["seconds"] * WHOLE_DREAMBOOTH / rows[-1]["trained_parameters"]
    result = {
        **about(),
        "steps_between": STEPS, "gpu_step_s": GPU_STEP_S, "rows": rows,
        "whole_dreambooth_by_its_size": {"seconds": round(whole, 1), **shares(whole, step_s["dreambooth"])},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(name: str, adapter: LoRA | Full, step_s: float, rounds: int, at: Path | None) -> dict[str, Any]:
    """Save an adapter's training again and again; return how long it waits for it, and its share of a run."""
    base: Any = Empty()
    attached = adapter.attach(base, [SlotSettings(seed=0)])
    slot = Slot("s", None, seed=0, steps=10_000, learning_rate=1e-4)  # pyright: ignore[reportArgumentType]
    training = Training(base, attached, [slot], objective=Denoising(), optimizer=AdamW())
    for parameter in training.parameters[0].values():
        parameter.grad = torch.full_like(parameter, 1e-3)
        with torch.no_grad():
            parameter.fill_(1e-2)
    training.updates[0].begin(1)
    training.updates[0].apply(1)
    recipe = Recipe(adapter=adapter, checkpoint=Checkpoint(keep=1))
    waits: list[float] = []
    computes: list[float] = []
    written: list[float] = []
    processor = time.process_time()
    with tempfile.TemporaryDirectory(dir=at) as place:
        folder = RunDir(Path(place))
        checkpoints = Checkpoints(folder, recipe, training, Spared(Watch()))
        for _ in range(rounds):
            training.index += STEPS
            begun, computed = time.perf_counter(), time.thread_time()
            checkpoints.begin()
            waits.append(time.perf_counter() - begun)
            computes.append(time.thread_time() - computed)
            checkpoints.finish()
            written.append(time.perf_counter() - begun)
        processor = (time.process_time() - processor) / rounds
        checkpoints.close()
        size = bytes_of(folder.checkpoints)
    median = statistics.median(waits)
    return {
        "what": name, "trained_parameters": attached.trainable_parameters(), "bytes": size, "rounds": rounds,
        "seconds": round(median, 4), "least": round(min(waits), 4), "most": round(max(waits), 4),
        "of_that_processor_s": round(statistics.median(computes), 4),
        "written_after_s": round(statistics.median(written), 4), "processor_seconds": round(processor, 4),
        **shares(median, step_s),
    }  # fmt: skip


def shares(seconds: float, step_s: float) -> dict[str, float]:
    """Return what part of the steps between two checkpoints one takes, here and where a step takes 0.1 s."""
    return {
        "step_s_here": step_s, "share_here": round(seconds / (STEPS * step_s), 6),
        "share_at_0.1_s": round(seconds / (STEPS * GPU_STEP_S), 6),
    }  # fmt: skip


if __name__ == "__main__":
    main()
