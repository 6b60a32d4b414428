"""The processes that share a run: each computes its rows of every batch, and gradients are summed over all."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from limner.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells the processes that it starts, in their environment."""
TOGETHER = 2**25
"""How many numbers are summed at once: 128 MiB in float32."""
PATIENCE = timedelta(hours=12)
"""How long the others wait while the first draws or saves; one that has died is noticed at once all the same."""


@dataclass(frozen=True)
class Ranks:
    """One process and how many there are; `Ranks()` is alone, and its methods then have nothing to do."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes and speaks."""
        return self.index == 0

    def check(self, batch: int, accumulate: int, rows_per_picture: int) -> None:
        """Refuse a batch that cannot be split evenly; with class pictures there are two rows for each of its own."""
        if batch * rows_per_picture % self.count:
            least = self.count // math.gcd(self.count, rows_per_picture)
            use = " or ".join(str(n) for n in (batch // least * least, -(-batch // least) * least) if n)
            raise UserError(
                f"batch={batch} (with accumulate={accumulate}) cannot be split over {self.count} processes.",
                f"Use batch={use}, or one process.",
            )

    def share(self, rows: int) -> range:
        """Return which of so many rows are this process's; fewer rows than processes leave some with none."""
        return range(rows * self.index // self.count, rows * (self.index + 1) // self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bits in every one; all of one number format."""
        if self.count == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        start = 0
        while start < len(tensors):
            end, numbers = start + 1, tensors[start].numel()
            while end < len(tensors) and numbers + tensors[end].numel() <= TOGETHER:
                numbers, end = numbers + tensors[end].numel(), end + 1
            part = tensors[start:end]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in part])
            try:
                dist.all_reduce(flat)
            except RuntimeError as error:
                message = f"Process {self.index}: another process of this run has stopped, and said why."
                raise UserError(message, "Mend that and resume the run.") from error
            with torch.no_grad():
                for tensor, summed in zip(part, flat.split([t.numel() for t in part]), strict=True):
                    tensor.copy_(summed.view_as(tensor))
            start = end

    def any(self, claim: bool) -> bool:
        """Return whether one of the processes claims it; none goes on before all have answered."""
        if self.count == 1:
            return claim
        import torch

        claims = torch.tensor([int(claim)])
        self.add([claims])
        return bool(claims)

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        self.any(False)

    def told(self, text: str) -> str:
        """Return the first process's text in all of them."""
        if self.count == 1:
            return text
        import torch

        said = text.encode() if self.is_first else b""
        length = torch.tensor([len(said)])
        self.add([length])
        letters = torch.zeros(int(length), dtype=torch.uint8)
        letters[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)
        self.add([letters])
        return bytes(letters.tolist()).decode()

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Have the first process do this block, and then the others, which find what it made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def started() -> Ranks:
    """Return which process this is by what torchrun said when it started it; alone without torchrun."""
    if any(name not in os.environ for name in STARTED):
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


@contextmanager
def joined() -> Iterator[Ranks]:
    """Connect the processes that torchrun started, for as long as the block lasts."""
    ranks = started()
    if ranks.count == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def first_to_say(text: str) -> bool:
    """Return whether none of the other processes has said this yet: what stops all of them is printed once."""
    if started().count == 1:
        return True
    from torch.distributed import TCPStore

    said = f"limner/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5)).add(said, 1) == 1
    except RuntimeError:  # whoever kept the list is gone
        return True
