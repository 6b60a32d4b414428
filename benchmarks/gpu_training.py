"""Training steps on a GPU: `python -m benchmarks.gpu_training [--device cpu --bases tiny] [--out FILE]`.

For each base, images a second for one subject and for many at once: eagerly, as a recorded CUDA graph, and compiled;
what share of the measured matrix rate that is; 800 image-steps of one subject, warm; and the allocator's peak in the
low-memory profile. Full-size bases ("sd15", "sdxl") have their published architecture and random weights, made on the
device: speed and memory do not depend on their values. Rows are printed and written as they are measured, the most
important first, and when the time is up the rest is said not to be measured. One H200 needs less than ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.about import about
from benchmarks.full_size import make_without_weights
from limner import machine
from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.errors import UserError
from limner.families.family import Family
from limner.families.load import load, sketch
from limner.fast import check_fast, speed_up
from limner.objectives import Denoising
from limner.recipe import Recipe
from limner.seeds import generator
from limner.train.company import Company
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from limner.train.trace import Trace
from limner.types import Batch, Conditioning

RESOLUTION_PX = {"sd15": 512, "sdxl": 1024}
IMAGE_STEPS = 800
WARM = 3


@dataclass(frozen=True)
class Arm:
    """One way of training that is measured."""

    base: str
    subjects: int
    fast: str
    checkpointing: bool = False


@dataclass(frozen=True)
class Row:
    """What an arm takes."""

    arm: Arm
    resolution_px: int
    step_ms: float
    """Median, from one step's end to the next one's."""
    spread_ms: tuple[float, float]
    steps: int
    images_per_s: float
    tflop_per_image: float
    mfu: float
    """Share of the measured matrix rate."""
    first_step_s: float
    """With warming up, recording or compiling, and the comparison with an eager step."""
    peak_gib: float
    image_steps_800_s: float | None = None
    """800 steps of one subject, warm; measured where an arm has one subject."""


@dataclass
class Drawn:
    """A source of random moments and conditioning in a base's own shapes: a few batches, by turns."""

    family: Family
    resolution_px: int
    subject: int
    _batches: list[Batch] = field(default_factory=list[Batch])

    def __post_init__(self) -> None:
        config, side = self.family.unet.config, self.resolution_px // self.family.pixels_per_latent
        for number in range(3):
            draws = generator("gpu training", self.subject, number)
            moments = torch.randn(1, 2, config.in_channels, side, side, generator=draws)
            hidden = torch.randn(1, 77, config.cross_attention_dim, generator=draws)
            pooled = time_ids = None
            if config.addition_embed_type == "text_time":
                time_ids = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]])
                width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
                pooled = torch.randn(1, width, generator=draws)
            self._batches.append(Batch(
                ids=(f"{number}.png",), moments=moments, conditioning=Conditioning(hidden, pooled, time_ids),
                weight=torch.ones(1), is_prior=(False,),
            ))  # fmt: skip

    def batch(self, step: int, *, seed: int) -> Batch:
        """Return the batch of a step."""
        return self._batches[step % len(self._batches)]


def made(base: str, device: torch.device, dtype: torch.dtype) -> Family:
    """Return a base on the device: one with weights, or one of full size with random ones."""
    if base not in RESOLUTION_PX:
        return load(base, dtype=dtype, device=device)
    family = without_weights(base, dtype)
    unet: nn.Module = family.unet.to_empty(device=device)
    draws = torch.Generator(device).manual_seed(0)
    for name, weight in unet.named_parameters():
        if weight.ndim > 1:
            bound = weight[0].numel() ** -0.5
            weight.data.uniform_(-bound, bound, generator=draws)
        else:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
    return family


def without_weights(base: str, dtype: torch.dtype) -> Family:
    """Return a base of full size on torch's device "meta"."""
    with tempfile.TemporaryDirectory() as place:
        make_without_weights(Path(place) / base, base)
        return sketch(str(Path(place) / base), dtype=dtype)


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of one large product of matrices, in 10^12 operations a second: the best of several."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds: list[float] = []
    for _ in range(12):
        _wait(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds) / 1e12


def measure(arm: Arm, family: Family, *, rank: int, seconds: float, matrix: float) -> Row:
    """Take steps of an arm for so many seconds, after those in which it is made ready."""
    device, recipe = family.device, _recipe(arm, family)
    resolution_px = RESOLUTION_PX.get(arm.base, family.native_resolution_px)
    trainings = [_training(family, recipe, resolution_px, number, rank) for number in range(arm.subjects)]
    if arm.checkpointing:
        family.compute_again(1.0)
    together = None
    if arm.subjects > 1:
        for training in trainings:
            training.adapter.detach()
        together = Company(trainings)
    take: Callable[[], Any] = together.step if together else trainings[0].step
    try:
        return _timed(arm, take, resolution_px, device, seconds, matrix)
    finally:
        if arm.checkpointing:
            family.unet.disable_gradient_checkpointing()
        if together:
            together.part()
        else:
            trainings[0].adapter.detach()


def _timed(
    arm: Arm, take: Callable[[], Any], resolution_px: int, device: torch.device, seconds: float, matrix: float
) -> Row:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    machine.reset_peak_memory()
    first = _seconds(take, device)
    for _ in range(WARM - 1):
        take()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        taken.append(_seconds(take, device))
    peak, whole = machine.peak_memory_gib(), None
    if arm.subjects == 1 and device.type == "cuda" and not arm.checkpointing:
        begun = time.perf_counter()
        for _ in range(IMAGE_STEPS):
            take()
        _wait(device)
        whole = round(time.perf_counter() - begun, 2)
    median = statistics.median(taken)
    operations = FLOPS[arm.base, arm.checkpointing]
    return Row(
        arm, resolution_px, step_ms=round(1000 * median, 3),
        spread_ms=(round(1000 * min(taken), 3), round(1000 * max(taken), 3)), steps=len(taken),
        images_per_s=round(arm.subjects / median, 3), tflop_per_image=round(operations / 1e12, 5),
        mfu=round(arm.subjects * operations / median / matrix / 1e12, 4), first_step_s=round(first, 2),
        peak_gib=round(peak, 3), image_steps_800_s=whole,
    )  # fmt: skip


FLOPS: dict[tuple[str, bool], float] = {}
"""Operations of one image's step, by base and by whether inner values are computed twice."""


def count_operations(base: str, family: Family, *, rank: int) -> None:
    """Count the operations of products, convolutions and attention in an eager step of one image."""
    resolution_px = RESOLUTION_PX.get(base, family.native_resolution_px)
    for checkpointing in (False, True):
        arm = Arm(base, 1, "off", checkpointing)
        training = _training(family, _recipe(arm, family), resolution_px, 0, rank)
        if checkpointing:
            family.compute_again(1.0)
        with Trace() as trace, trace.measuring() as cost:
            training.step()
        FLOPS[base, checkpointing] = float(sum(cost.flops.values()))
        family.unet.disable_gradient_checkpointing()
        training.adapter.detach()


def _training(family: Family, recipe: Recipe, resolution_px: int, number: int, rank: int) -> Training:
    adapter = LoRA(rank=rank, targets="attention").attach(family, [SlotSettings(seed=number)])
    slot = Slot(f"subject {number}", Drawn(family, resolution_px, number), number, 10**6, 1e-4)
    training = Training(family, adapter, [slot], objective=Denoising(), optimizer=AdamW())
    speed_up(training, recipe)
    return training


def _recipe(arm: Arm, family: Family) -> Recipe:
    recipe = Recipe.model_validate({"fast": arm.fast, "device": str(family.device)})
    check_fast(recipe)
    return recipe


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def arms(bases: list[str], subjects: list[int], ways: list[str]) -> Iterator[Arm]:
    """Yield what is measured, the most important first; what has to be compiled, which takes long, is last."""
    compiled = [way for way in ways if "compile" in way]
    for base in bases:
        for way in sorted(set(ways) - set(compiled)):
            yield from (Arm(base, count, way) for count in subjects)
        yield Arm(base, 1, "off", checkpointing=True)
    yield from (Arm(base, count, way) for base in bases for way in compiled for count in subjects)


def main() -> None:
    """Parse the command line, measure, print and write."""
    given = _given()
    begun = time.perf_counter()
    try:
        at = machine.place(given.device, given.precision)
        ways = given.fast or (["graph", "off", "graph+compile"] if at.device.type == "cuda" else ["off"])
        for way in ways:
            check_fast(Recipe.model_validate({"fast": way, "device": given.device}))
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    matrix = matrix_tflops(at.device, at.dtype)
    result: dict[str, Any] = {**about(), "precision": given.precision, "rank": given.rank,
                              "matrix_tflops": round(matrix, 3), "rows": [], "not_measured": []}  # fmt: skip
    for arm, row, why in _measured(given, at, ways, matrix, until=begun + 60 * given.minutes):
        if row:
            result["rows"].append(asdict(row))
        else:
            result["not_measured"].append({**asdict(arm), "why": why})
        print(json.dumps(asdict(row) if row else result["not_measured"][-1]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))


def _measured(
    given: argparse.Namespace, at: machine.Place, ways: list[str], matrix: float, *, until: float
) -> Iterator[tuple[Arm, Row | None, str]]:
    """Yield each arm with its row, or without one and why."""
    family: Family | None = None
    there = ""
    for arm in arms(given.bases, given.subjects, ways):
        if time.perf_counter() > until:
            yield arm, None, "the time was up"
            continue
        if arm.base != there:
            family = None  # its memory is given back before the next one is made
            family, there = made(arm.base, at.device, at.dtype), arm.base
            count_operations(arm.base, family, rank=given.rank)
        assert family, "it has just been made, or it is the one of before"
        try:
            yield arm, measure(arm, family, rank=given.rank, seconds=given.seconds, matrix=matrix), ""
        except torch.OutOfMemoryError as error:
            yield arm, None, str(error).partition(".")[0]


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_training", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bases", nargs="+", default=["sd15", "sdxl"], help="sd15, sdxl, tiny, or a folder")
    parser.add_argument("--subjects", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--fast", nargs="+", help="ways of taking steps: off graph compile graph+compile")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each arm's timed steps")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further arm is begun")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
