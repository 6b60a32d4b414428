"""The change of one layer's weight as files hold it: low-rank, LoHa, LoKr, DoRA or a whole difference."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Delta(ABC):
    """A change of one layer's weight at strength 1, in NumPy: what only looks at a file need not wait for torch."""

    kind: ClassVar[str]
    """What people call it."""
    needs_weight: ClassVar[bool] = False
    """Whether the change depends on the weight that it is for."""

    @abstractmethod
    def delta(self, weight: Array | None = None) -> Array:
        """Return the change, float32, shaped like `weight`; without a weight in the shape that the file gives."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the change as the file gives it; a weight may have the same numbers in another shape."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Width of the update; 0 where it has none."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """What its factors are multiplied with: alpha / rank."""

    @abstractmethod
    def tensors(self) -> dict[str, Array]:
        """Return its tensors under the names that kohya's tools and LyCORIS give them, alpha among them."""

    def norm(self) -> float:
        """Return the length of the change in the L2 norm; NaN where it depends on the weight."""
        return math.nan if self.needs_weight else float(np.linalg.norm(self.delta().astype(np.float64)))


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """alpha / rank * B A (arXiv:2106.09685)."""

    A: Array
    """[rank, in], of a convolution [rank, in, height, width]."""
    B: Array
    """[out, rank]."""
    alpha: float
    kind = "LoRA"

    def delta(self, weight: Array | None = None) -> Array:
        change = (self.B @ self.A.reshape(self.rank, -1)) * np.float32(self.scale)
        return change.reshape(self.shape if weight is None else weight.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.B.shape[0], *self.A.shape[1:])

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def tensors(self) -> dict[str, Array]:
        B = self.B.reshape(*self.B.shape, *[1] * (self.A.ndim - 2))
        return {"lora_down.weight": self.A, "lora_up.weight": B, "alpha": np.array(self.alpha, np.float32)}

    def norm(self) -> float:
        A, B = self.A.reshape(self.rank, -1).astype(np.float64), self.B.astype(np.float64)
        return abs(self.scale) * math.sqrt(max(0.0, float(np.sum((A @ A.T) * (B.T @ B)))))  # |BA|^2 = tr(AA'B'B)


@dataclass(frozen=True, eq=False)
class LoHa(Delta):
    """Two low-rank products, multiplied element by element (arXiv:2108.06098)."""

    parts: Mapping[str, Array]
    """hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, and of a convolution perhaps the cores hada_t1, hada_t2."""
    alpha: float
    kind = "LoHa"

    def delta(self, weight: Array | None = None) -> Array:
        one, two = (
            _product(self.parts[f"hada_w{i}_a"], self.parts[f"hada_w{i}_b"], self.parts.get(f"hada_t{i}"))
            for i in (1, 2)
        )
        return _shaped(one * two * np.float32(self.scale), weight)

    @property
    def shape(self) -> tuple[int, ...]:
        return _product_shape(self.parts, "hada_w1", "hada_t1")

    @property
    def rank(self) -> int:
        return self.parts["hada_w1_b"].shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def tensors(self) -> dict[str, Array]:
        return {**self.parts, "alpha": np.array(self.alpha, np.float32)}


@dataclass(frozen=True, eq=False)
class LoKr(Delta):
    """A Kronecker product, each of its two factors whole or of low rank (arXiv:2212.10650)."""

    parts: Mapping[str, Array]
    """lokr_w1 or lokr_w1_a and lokr_w1_b; lokr_w2 or lokr_w2_a and lokr_w2_b, perhaps with the core lokr_t2."""
    factor: float
    """The scale: alpha / rank, and 1 by LyCORIS's rule where both factors are whole."""
    kind = "LoKr"

    def delta(self, weight: Array | None = None) -> Array:
        one, two = self._factor(1), self._factor(2)
        one = one.reshape(*one.shape, *[1] * (two.ndim - 2))
        return _shaped(np.kron(one, two) * np.float32(self.scale), weight)

    def _factor(self, i: int) -> Array:
        whole = self.parts.get(f"lokr_w{i}")
        if whole is not None:
            return whole
        return _product(self.parts[f"lokr_w{i}_a"], self.parts[f"lokr_w{i}_b"], self.parts.get(f"lokr_t{i}"))

    @property
    def shape(self) -> tuple[int, ...]:
        one, two = (_product_shape(self.parts, f"lokr_w{i}", f"lokr_t{i}") for i in (1, 2))
        return (one[0] * two[0], one[1] * two[1], *two[2:])

    @property
    def rank(self) -> int:
        factors = [part.shape[0] for name, part in self.parts.items() if name.endswith("_b")]
        return factors[0] if factors else 0

    @property
    def scale(self) -> float:
        return self.factor

    def tensors(self) -> dict[str, Array]:
        if self.rank:
            return {**self.parts, "alpha": np.array(self.factor * self.rank, np.float32)}
        # Its alpha is not heeded, and LyCORIS reads no file without one.
        w1 = self.parts["lokr_w1"] * np.float32(self.factor)
        return {**self.parts, "lokr_w1": w1, "alpha": np.array(1.0, np.float32)}

    def norm(self) -> float:
        one, two = (float(np.linalg.norm(self._factor(i).astype(np.float64))) for i in (1, 2))
        return abs(self.factor) * one * two


@dataclass(frozen=True, eq=False)
class Difference(Delta):
    """The whole difference of two weights."""

    change: Array
    role: str = "diff"
    """What its tensor is called: diff, and w_norm in a normalisation."""
    kind = "difference"

    def delta(self, weight: Array | None = None) -> Array:
        return _shaped(self.change, weight)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.change.shape

    @property
    def rank(self) -> int:
        return 0

    @property
    def scale(self) -> float:
        return 1.0

    def tensors(self) -> dict[str, Array]:
        return {self.role: self.change}


@dataclass(frozen=True, eq=False)
class DoRA(Delta):
    """A weight with a change in it, brought to a learned length for each output or input (arXiv:2402.09353)."""

    change: Delta
    magnitude: Array
    """One number per output, or per input."""
    axis: int
    """Axis of the weight that has a length for each entry: 0 outputs (peft), 1 inputs (LyCORIS's default for long)."""
    kind = "DoRA"
    needs_weight = True

    def delta(self, weight: Array | None = None) -> Array:
        if weight is None:
            raise ValueError("DoRA's change depends on the weight that it is for")
        tuned = weight + self.change.delta(weight)
        others = tuple(i for i in range(weight.ndim) if i != self.axis)
        length = np.sqrt(np.sum(np.square(tuned), axis=others, keepdims=True))
        return tuned * (_along(self.magnitude, weight, self.axis) / length) - weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.change.shape

    @property
    def rank(self) -> int:
        return self.change.rank

    @property
    def scale(self) -> float:
        return self.change.scale

    def tensors(self) -> dict[str, Array]:
        known = self.change.tensors()
        further = [1] * (max(2, *(part.ndim for part in known.values())) - 2)
        shape = (-1, 1, *further) if self.axis == 0 else (1, -1, *further)
        return {**known, "dora_scale": self.magnitude.reshape(shape)}


def _product(a: Array, b: Array, core: Array | None) -> Array:
    """Return a b, or with a core of a convolution its Tucker product, whose `a` is [rank, out]."""
    if core is None:
        return a @ b.reshape(b.shape[0], -1)
    return np.einsum("ijkl,ip,jr->prkl", core, a, b, optimize=True)


def _product_shape(parts: Mapping[str, Array], name: str, core: str) -> tuple[int, ...]:
    """Return the shape of a factor: a whole one, a b, or the Tucker product."""
    if name in parts:
        return parts[name].shape
    a, b, t = parts[f"{name}_a"], parts[f"{name}_b"], parts.get(core)
    return (a.shape[0], b.size // b.shape[0]) if t is None else (a.shape[1], b.shape[1], *t.shape[2:])


def collapsed(mid: Array, A: Array) -> Array:
    """Return the A of a plain LoRA that does what LoCon's core [rank, rank, height, width] and its 1 x 1 A do."""
    return np.einsum("ijkl,jr->irkl", mid, A.reshape(A.shape[0], -1), optimize=True)


def _shaped(change: Array, weight: Array | None) -> Array:
    return change if weight is None else change.reshape(weight.shape)


def _along(values: Array, weight: Array, axis: int) -> Array:
    """Return values shaped so that they multiply a weight along one axis."""
    return values.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
