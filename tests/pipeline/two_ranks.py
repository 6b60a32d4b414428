"""`limner` as two processes that share a run, forked from one that has imported everything, as torchrun starts them.

`python -m tests.pipeline.two_ranks '[["train", ...], ...]'` runs one command line after the other and exits with 1 at
the first that fails. The first is made to fail, by a second process that runs out of memory in its second step.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from itertools import count

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.launcher import warm_up
from limner.errors import UserError

AS_TORCHRUN = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=0, monitor_interval=0.1,
    rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork",
)  # fmt: skip


def main() -> None:
    """Import everything, then run each command line."""
    warm_up()
    first, *others = json.loads(sys.argv[1])
    with contextlib.suppress(ChildFailedError):
        elastic_launch(AS_TORCHRUN, limner_out_of_memory)(first)
        sys.exit("Neither process failed.")
    for words in others:
        elastic_launch(AS_TORCHRUN, limner)(words)


def limner(words: Sequence[str]) -> None:
    """Be `limner WORDS`."""
    from limner.cli import main as command_line

    sys.argv = ["limner", *words]
    command_line()


def limner_out_of_memory(words: Sequence[str]) -> None:
    """Be `limner WORDS`, but the second of several processes runs out of memory in the second step that it takes."""
    from limner.train.loop import Step, Training

    step, taken = Training.step, count()

    def fail(self: Training) -> Step:
        if next(taken) == 1 and self.ranks.index == 1:
            raise UserError("GPU 1: out of memory.", "Set fit=true.")
        return step(self)

    Training.step = fail  # type: ignore[method-assign]
    limner(words)


if __name__ == "__main__":
    main()
