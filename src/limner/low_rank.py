"""A change of weight taken apart by its singular values, and cut to a rank or to a share of its energy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limner.spec import Spec

NOISE = 1e-6
"""A singular value below this share of the largest is rounding of float32, and no direction of the change."""


class Cut(Spec):
    """How much of a change is kept: a rank, a share of the energy, or the energy with the rank as its limit."""

    rank: int | None = Field(default=None, ge=1)
    """The largest rank of a layer."""
    energy: float | None = Field(default=None, gt=0, le=1)
    """The least share of a layer's energy (the sum of its squared singular values), which decides its rank."""

    @model_validator(mode="after")
    def _says_something(self) -> Cut:
        if self.rank is None and self.energy is None:
            raise ValueError("give rank=N or energy=0.95")
        return self


@dataclass(frozen=True)
class Spectrum:
    """A change of weight as U diag(S) V, in float64, the largest singular value first."""

    U: Float[Tensor, "out k"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "k in"]
    total: float
    """Energy of the whole change: its squared L2 norm."""

    def rank(self, cut: Cut) -> int:
        """Return the rank that a cut leaves, at least 1."""
        rank = max(1, int((self.S / self.S[0] > NOISE).sum()))
        if cut.energy is not None:
            enough = (self.S.square().cumsum(0) >= (cut.energy - 1e-9) * self.total).nonzero()
            rank = min(rank, int(enough[0]) + 1) if len(enough) else rank
        return rank if cut.rank is None else min(rank, cut.rank)

    def energy(self, rank: int) -> float:
        """Return the energy of the `rank` largest singular values."""
        return float(self.S[:rank].square().sum())

    def factors(self, rank: int) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
        """Return A and B in float32 whose product B A is the change at that rank; both share the singular values."""
        root = self.S[:rank].sqrt()
        return (root[:, None] * self.V[:rank]).float(), (self.U[:, :rank] * root).float()


def of_change(delta: Float[Tensor, "out ..."]) -> Spectrum:
    """Take a change of weight apart; that of a convolution as the matrix of its output and all of its input.

    By the eigenvectors of its Gram matrix in float64: as exact as singular values in float32, and of a convolution,
    whose input is much wider than its output, several times faster.
    """
    matrix = delta.flatten(1).double()
    wide = matrix.shape[1] >= matrix.shape[0]
    values, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    S, vectors = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    other = (vectors.T @ matrix if wide else (matrix @ vectors).T) / S.clamp(min=1e-300)[:, None]
    U, V = (vectors, other) if wide else (other.T, vectors.T)
    return Spectrum(U, S, V, float(matrix.square().sum()))


def of_product(A: Float[Tensor, "rank in"], B: Float[Tensor, "out rank"]) -> Spectrum:
    """Take the product B A apart without making it: the singular values of its factors' triangles."""
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, S, V = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Spectrum(Q_B @ U, S, V @ Q_A.T, float(S.square().sum()))


@dataclass(frozen=True)
class Kept:
    """How much of a layer's change was kept, and at which rank."""

    rank: int
    energy: float
    """Energy of what was kept."""
    at_four_times: float
    """Energy of what four times the rank would have kept."""
    total: float

    @property
    def share(self) -> float:
        """Return the share of the energy that was kept; 1 where there was nothing to keep."""
        return self.energy / self.total if self.total else 1.0


def cut(change: Spectrum, to: Cut) -> tuple[Tensor, Tensor, Kept]:
    """Return A and B of a change cut to a rank or an energy, and how much that is."""
    rank = change.rank(to)
    kept = Kept(rank, change.energy(rank), change.energy(4 * rank), change.total)
    return *change.factors(rank), kept


def tell_kept(layers: Iterable[Kept], to: Cut) -> str:
    """Return how much of a change all layers together keep: "rank 16 keeps 71 % of the change (rank 64: 93 %)"."""
    layers = list(layers)
    total = sum(one.total for one in layers) or 1.0
    share, more = (percent(sum(getattr(one, name) for one in layers) / total) for name in ("energy", "at_four_times"))
    if to.energy is None:
        ranks, further = f"rank {to.rank} keeps", f"rank {4 * (to.rank or 1)}"
    else:
        ranks = f"ranks {min(one.rank for one in layers)} to {max(one.rank for one in layers)} keep"
        further = "four times as much"
    return f"{ranks} {share} of the change" + (f" ({further}: {more})" if share != more else "")


def percent(share: float) -> str:
    """Return a share in words; "all" only where nothing is lost, and never "0 %" for something."""
    if share > 1 - 1e-6:
        return "all"
    if 0 < share < 0.005:
        return "under 1 %"
    return f"{math.floor(share * 1000) / 10:.1f} %" if share > 0.99 else f"{share * 100:.0f} %"
