"""Examples without pictures: random moments and conditioning, for tests of the training loop."""

from __future__ import annotations

import torch

from limner.seeds import generator
from limner.types import Batch, Conditioning


class Drawn:
    """A source of random examples: `rows` instance pictures and as many of the prior."""

    def __init__(self, subject: int, rows: int = 1, prior: bool = True) -> None:
        self.subject, self.rows, self.prior = subject, rows, prior
        self.poison: range | None = None

    def batch(self, step: int, *, seed: int) -> Batch:
        n = self.rows * (2 if self.prior else 1)
        draws = generator("drawn", self.subject, step % 3, seed)
        moments = torch.stack([torch.randn(n, 4, 16, 16, generator=draws), torch.full((n, 4, 16, 16), 0.1)], dim=1)
        if self.poison and step in self.poison:
            moments[0] = float("nan")
        is_prior = tuple(i >= self.rows for i in range(n))
        return Batch(
            ids=tuple(f"{self.subject}-{i}.png" for i in range(n)),
            moments=moments,
            conditioning=Conditioning(torch.randn(n, 32, 32, generator=draws)),
            weight=torch.tensor([0.7 if p else 1.0 for p in is_prior]),
            is_prior=is_prior,
        )
