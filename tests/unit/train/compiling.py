"""Steps with compiled blocks beside eager ones, in a process without type checks: these are wrappers, and not compiled.

`python -m tests.unit.train.compiling BASE DEVICE BACKEND graph|eager` prints how far they end apart, as JSON.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
from torch._dynamo.utils import counters

from limner.families.load import load
from limner.seeds import Draws
from limner.train.compiled import Compiled
from limner.train.loop import Training
from limner.train.recorded import CudaGraph
from tests.unit.train.runs import apart, training, weights


def main(base: str, device: str, backend: str, how: str) -> None:
    """Take three steps of two slots in both ways."""
    family = load(base, dtype=torch.float32, device=device)
    compiled = Compiled(family.unet, backend=backend)
    runs: list[Training] = []
    for is_compiled in (False, True):
        run = training(family, [4, 2], steps=4)
        run.passes.draws = Draws(family.device)
        if is_compiled:
            run.passes.compiled = compiled
            if how == "graph":
                run.record(partial(CudaGraph, family.device))
        for _ in range(3):
            run.step()
        run.adapter.detach()
        runs.append(run)
    told = {
        "apart": apart(weights(runs[1]), weights(runs[0])),
        "blocks": len(compiled),
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
        "left": sum("forward" in vars(block) for block in family.unet.modules()),
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
