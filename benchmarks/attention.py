"""Attention in bfloat16 on a CPU beside torch's kernel, in time and exactness: `python -m benchmarks.attention`.

Self-attention as SD 1.5, SDXL and a VAE have it, on normally distributed queries and keys: the wider they are spread,
the fewer keys a query sees. Processor time forward and backward, the least of a few; errors are the length of the
difference from float64, as a part of the length: of what comes out, and of the gradients of queries, keys and values.
With `--base` also how far a base's UNet predicts from float32, for noise of that many pixels: with either, all else
alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.about import about
from benchmarks.bare_floor import batch
from limner.families import attention
from limner.families.load import load
from limner.rundir import write_json

SHAPES = {
    "SD 1.5 at 512 px": (4096, 8, 40), "SD 1.5 at 512 px, level 2": (1024, 8, 80), "SD 1.5 at 256 px": (1024, 8, 40),
    "SDXL at 1024 px": (4096, 10, 64), "SDXL at 1024 px, level 2": (1024, 20, 64), "VAE at 512 px": (4096, 1, 512),
    "SD 1.5 at 256 px, level 2": (256, 8, 80), "SDXL at 256 px": (256, 10, 64), "SDXL at 256 px, level 2": (64, 20, 64),
}  # fmt: skip
"""Tokens, heads and width of a head."""
SPREADS = (1.0, 1.7, 2.5)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
ARMS: dict[str, Attend] = {"torch": F.scaled_dot_product_attention, "Limner": attention.attend}


def main() -> None:
    """Parse the command line, measure, print a line for each shape and spread."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", help="a base whose UNet predicts in bfloat16 and in float32")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_args()
    found = about() | {"rows": [row for name in SHAPES for row in measure(name, given.rounds)]}
    if given.base:
        found["prediction_error"] = prediction_errors(given.base, given.resolution)
        print(f"prediction, from float32's: {found['prediction_error']}")
    if given.out:
        write_json(given.out, found)


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """Return times and errors of both for a shape, printed as they come."""
    tokens, heads, width = SHAPES[name]
    rows: list[dict[str, Any]] = []
    for spread in SPREADS:
        draws = torch.Generator().manual_seed(0)
        inputs = [(spread * torch.randn(1, tokens, heads, width, generator=draws)).bfloat16() for _ in range(3)]
        grad = torch.randn(inputs[0].shape, generator=draws).bfloat16()
        times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
        seen: dict[str, list[Tensor]] = {}
        for _ in range(rounds * max(1, attention.MANY_TOKENS // tokens)):  # in turn, so that a busy moment hits both
            for arm, attend in ARMS.items():
                seen[arm], taken = passed(attend, inputs, grad)
                times[arm].append(taken)
        exact, _ = passed(
            F.scaled_dot_product_attention, [x[:, :, :1].double() for x in inputs], grad[:, :, :1].double()
        )
        for arm in ARMS:
            forward, backward = (round(1000 * min(part), 2) for part in zip(*times[arm], strict=True))
            errors = [error(mine[:, :, :1], true) for mine, true in zip(seen[arm], exact, strict=True)]
            rows.append({"shape": name, "spread": spread, "arm": arm, "forward_ms": forward, "backward_ms": backward,
                         "errors": errors})  # fmt: skip
            print(f"{name:<32}{spread:<5}{arm:<8}{forward:8.2f} + {backward:6.2f} ms  {errors}", flush=True)
    return rows


def passed(attend: Attend, inputs: list[Tensor], grad: Tensor) -> tuple[list[Tensor], tuple[float, float]]:
    """Return what comes out (rows, tokens, heads, width) and the gradients; the processor seconds of both ways."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    began = time.process_time()
    out = attend(*(x.transpose(1, 2) for x in leaves)).transpose(1, 2)
    between = time.process_time()
    out.backward(grad)
    ended = time.process_time()
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)], (between - began, ended - between)


def prediction_errors(base: str, resolution_px: int) -> dict[str, float]:
    """Return how far a UNet in bfloat16 predicts from the same in float32, with either attention."""
    predictions: dict[str, Tensor] = {}
    many = attention.MANY_TOKENS
    for arm, dtype in (("float32", torch.float32), ("torch", torch.bfloat16), ("Limner", torch.bfloat16)):
        attention.MANY_TOKENS = 2**62 if arm == "torch" else many
        family = load(base, dtype=dtype, device="cpu")
        with torch.no_grad():
            predictions[arm] = family.unet(**batch(family.unet, resolution_px // family.pixels_per_latent)).sample
    return {arm: error(predictions[arm], predictions["float32"].double()) for arm in ARMS}


def error(found: Tensor, true: Tensor) -> float:
    """Return the length of the difference, as a part of the truth's."""
    return round(float((found.double() - true).norm() / true.norm()), 5)


if __name__ == "__main__":
    main()
