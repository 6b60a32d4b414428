"""Changes that are made of the weight which they are for: turned, scaled, or multiplied by what was learned."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from limner.adapters.deltas import Array, Delta

ANY = -1
"""In the shape of a change: a side that its tensors say nothing of."""


class Relative(Delta):
    """A change that depends on its weight and has no rank."""

    needs_weight = True

    @property
    def rank(self) -> int:
        return 0

    @property
    def scale(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Turned(Relative):
    """The outputs of a weight, turned."""

    blocks: Array
    """[..., blocks, size, size]: the halves of Q, of which (I + Q) / (I - Q) is the turn; or the turns themselves."""
    constraint: float = 0.0
    """The largest length of Q for each output; 0 is none."""
    rescale: Array | None = None
    """What each output is multiplied with afterwards."""
    role: str = "oft_blocks"
    """What its tensor is called: oft_blocks, or oft_diag where the turns themselves are written."""

    def delta(self, weight: Array | None = None) -> Array:
        W = _needed(weight, self.kind)
        turned = self.turned(_turns(self.blocks, self.constraint * self.shape[0], self.role), W)
        return _rescaled(turned.reshape(W.shape), self.rescale) - W

    @abstractmethod
    def turned(self, R: Array, W: Array) -> Array:
        """Return the weight turned by R, in any shape of as many numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.blocks.shape[-3] * self.blocks.shape[-2], ANY)

    def tensors(self) -> dict[str, Array]:
        found = {self.role: self.blocks, "alpha": np.array(self.constraint, np.float32)}
        return found if self.rescale is None else {**found, "rescale": self.rescale}

    def norm(self) -> float:
        """Return NaN, as the length of a change that depends on the weight, and 0 for one that does nothing."""
        still = not np.any(_turns(self.blocks, 0.0, self.role) - np.eye(self.blocks.shape[-1], dtype=np.float32))
        return 0.0 if still and (self.rescale is None or bool(np.all(self.rescale == 1))) else math.nan


class OFT(Turned):
    """The outputs of a weight, turned in blocks of neighbours (arXiv:2306.07280); `blocks` [blocks, size, size]."""

    kind = "OFT"

    def turned(self, R: Array, W: Array) -> Array:
        """Return every block of neighbouring outputs, turned by its own R."""
        return np.einsum("knm,kni->kmi", R, W.reshape(*R.shape[:2], -1), optimize=True)


class BOFT(Turned):
    """The outputs of a weight, turned in blocks of ever farther partners, stage after stage (arXiv:2311.06243).

    `blocks` are [stages, blocks, size, size].
    """

    kind = "BOFT"

    def turned(self, R: Array, W: Array) -> Array:
        """Return the weight after the last stage, in which partners stand farthest apart."""
        (stages, _, size, _), turned = R.shape, W.reshape(W.shape[0], -1)
        columns = turned.shape[1]
        for i in range(stages):
            far = 2**i * (size // 2)
            beside = turned.reshape(-1, 2, far, columns).swapaxes(1, 2).reshape(-1, size, columns)
            beside = np.einsum("bij,bjc->bic", R[i], beside, optimize=True)
            turned = beside.reshape(-1, far, 2, columns).swapaxes(1, 2).reshape(-1, columns)
        return turned


@dataclass(frozen=True, eq=False)
class IA3(Relative):
    """Every output of a weight, or every input, multiplied with 1 and a learned number (arXiv:2205.05638)."""

    weight: Array
    """What is added to 1, as the file shapes it."""
    on_input: bool
    kind = "(IA)^3"

    def delta(self, weight: Array | None = None) -> Array:
        W = _needed(weight, self.kind)
        return W * self.weight.reshape([-1 if i == int(self.on_input) else 1 for i in range(W.ndim)])

    @property
    def shape(self) -> tuple[int, ...]:
        return (ANY, self.weight.size) if self.on_input else (self.weight.size, ANY)

    def tensors(self) -> dict[str, Array]:
        return {"weight": self.weight, "on_input": np.array(float(self.on_input), np.float32)}

    def norm(self) -> float:
        return math.nan if np.any(self.weight) else 0.0


@dataclass(frozen=True, eq=False)
class GLoRA(Delta):
    """alpha / rank * (W A + B), with A = a1 a2 and B = b1 b2 of low rank (arXiv:2306.07967)."""

    parts: Mapping[str, Array]
    """a1.weight [in, rank], a2.weight [rank, in], b1.weight [out, rank], b2.weight [rank, in], of a convolution
    [rank, in, height, width]."""
    alpha: float
    kind = "GLoRA"
    needs_weight = True

    def delta(self, weight: Array | None = None) -> Array:
        W = _needed(weight, self.kind)
        a1, a2, b1 = (part.reshape(part.shape[:2]) for part in (self.parts[f"{x}.weight"] for x in ("a1", "a2", "b1")))
        WA = np.moveaxis(np.tensordot(np.tensordot(W, a1, (1, 0)), a2, (-1, 0)), -1, 1)
        return (WA + (b1 @ self.parts["b2.weight"].reshape(self.rank, -1)).reshape(W.shape)) * np.float32(self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.parts["b1.weight"].shape[0], *self.parts["b2.weight"].shape[1:])

    @property
    def rank(self) -> int:
        return self.parts["a2.weight"].shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def tensors(self) -> dict[str, Array]:
        return {**self.parts, "alpha": np.array(self.alpha, np.float32)}

    def norm(self) -> float:
        still = all(not np.any(self.parts[f"{a}.weight"]) or not np.any(self.parts[f"{b}.weight"])
                    for a, b in (("a1", "a2"), ("b1", "b2")))  # fmt: skip
        return 0.0 if still else math.nan


def _turns(blocks: Array, limit: float, role: str) -> Array:
    """Return the turns that blocks stand for, by Cayley's transform; `limit`: the length that Q may have."""
    if role == "oft_diag":
        return blocks
    Q = (blocks - blocks.swapaxes(-1, -2)).astype(np.float64)
    length, one = float(np.linalg.norm(Q)) + 1e-8, np.eye(Q.shape[-1])
    Q = Q * (limit / length) if 0 < limit < length else Q
    return ((one + Q) @ np.linalg.inv(one - Q)).astype(np.float32)


def _rescaled(weight: Array, rescale: Array | None) -> Array:
    return weight if rescale is None else weight * rescale.reshape(-1, *[1] * (weight.ndim - 1))


def _needed(weight: Array | None, kind: str) -> Array:
    if weight is None:
        raise ValueError(f"{kind}'s change depends on the weight that it is for")
    return weight
