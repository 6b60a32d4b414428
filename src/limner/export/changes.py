"""A layer's change of weight from its tensors in a LoRA's file, of whatever method; what does not fit is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from limner.adapters.deltas import Array, Delta, Difference, DoRA, LoHa, LoKr, LowRank, collapsed
from limner.adapters.relative import BOFT, IA3, OFT, GLoRA
from limner.errors import OR_WHAT_FITS, UserError
from limner.export.header_alphas import HeaderAlphas

TURNED = {"oft_blocks", "oft_diag"}
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")


class Broken(UserError):
    """The tensors of one layer do not make a change of its weight."""


def build_change(
    path: Path, layer: str, parts: dict[str, Array], said: HeaderAlphas, alpha: float | None
) -> tuple[Delta, Array | None, bool]:
    """Return a layer's change of weight, that of its bias, and whether its alpha was assumed."""
    parts, bias = _todays_glora(parts), None
    for role in ("diff_b", "b_norm"):
        if len(parts) > 1 and role in parts:
            bias = parts.pop(role)
    rank = _rank(parts)
    found = float(parts.pop("alpha").reshape(-1)[0]) if "alpha" in parts and parts["alpha"].size else None
    if parts.keys() & TURNED:  # whose alpha is no strength, but how far they may turn
        return _build(path, layer, parts, found or 0.0, peft=False), bias, False
    chosen = alpha or said.choose(layer, rank, found)  # kohya's tools take an alpha of 0 for the rank
    change = _build(path, layer, parts, chosen or float(rank or 1), peft=said.is_peft)
    return change, bias, chosen is None and rank > 0


def _rank(parts: Mapping[str, Array]) -> int:
    """Return the width of the update, 0 where it has none."""
    for role in ("A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "a2.weight"):
        if role in parts and parts[role].ndim:
            return parts[role].shape[0]
    return 0


def _build(path: Path, layer: str, parts: dict[str, Array], alpha: float, *, peft: bool) -> Delta:
    """Return a layer's change from its tensors.

    Raises:
        UserError: tensors are missing, are left over, or do not fit one another.
    """
    outputs, magnitude, scalar = (parts.pop(role, None) for role in ("output_magnitude", "magnitude", "scalar"))
    factor = float(scalar.reshape(-1)[0]) if scalar is not None and scalar.size else 1.0
    try:
        change = _plain(path, layer, parts, alpha * factor, peft=peft)
        _require(0 not in change.shape)
        if outputs is not None or magnitude is None:
            _require(outputs is None or (outputs.size == change.shape[0] and not change.needs_weight))
            return change if outputs is None else DoRA(change, outputs.reshape(-1), 0)
        axis = 1 if magnitude.ndim > 1 and magnitude.shape[0] == 1 else 0
        _require(magnitude.size == change.shape[axis] and not change.needs_weight)
        return DoRA(change, magnitude.reshape(-1), axis)
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        shapes = ", ".join(f"{role} {part.shape}" for role, part in sorted(parts.items()))
        raise Broken(
            f"{path}: {layer} has tensors that do not belong together ({shapes}).",
            "The file is damaged or not complete: get it again.",
        ) from error


def _plain(path: Path, layer: str, parts: Mapping[str, Array], alpha: float, *, peft: bool) -> Delta:
    names = set(parts)
    if names & {"A", "B"}:
        for one, other in ("AB", "BA"):
            if other not in names:
                raise Broken(f"{path}: {layer} has {'an A' if one == 'A' else 'a B'} and no {other}.",
                              f"The file is not complete: get it again{OR_WHAT_FITS}.")  # fmt: skip
        _require(names <= {"A", "B", "mid"})
        return _low_rank(parts["A"], parts["B"], parts.get("mid"), alpha)
    if any(name.startswith("hada_") for name in names):
        _require(names <= {f"hada_{x}" for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")})
        one, two = (_checked(parts, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
        _require(one == two)
        return LoHa(dict(parts), alpha)
    if any(name.startswith("lokr_") for name in names):
        one, two = (_checked(parts, f"lokr_w{i}", f"lokr_t{i}") for i in (1, 2))
        _require(len(one) == 2 and len(two) in (2, 4))
        rank = _rank(parts)
        # LyCORIS and ComfyUI heed no alpha where both factors are whole; peft does.
        return LoKr(dict(parts), alpha / rank if rank else alpha if peft else 1.0)
    if names & TURNED:
        return _turned(parts, alpha)
    if "on_input" in names:
        _require(names == {"weight", "on_input"} and parts["on_input"].size == 1)
        return IA3(parts["weight"], bool(parts["on_input"].reshape(-1)[0]))
    if "a1.weight" in names:
        return _glora(parts, alpha)
    (role,) = names
    _require(role in ("diff", "w_norm") and parts[role].ndim > 0)
    return Difference(parts[role], role)


def _turned(parts: Mapping[str, Array], constraint: float) -> OFT | BOFT:
    """Return an OFT, or with a fourth axis a BOFT."""
    (role,) = parts.keys() & TURNED
    blocks, rescale = parts[role], parts.get("rescale")
    _require(parts.keys() <= {role, "rescale"} and blocks.ndim in (3, 4) and blocks.shape[-1] == blocks.shape[-2])
    change = (OFT if blocks.ndim == 3 else BOFT)(blocks, constraint, rescale, role)
    outputs = change.shape[0]
    _require(rescale is None or rescale.size == outputs)
    if isinstance(change, BOFT):
        stages, size = blocks.shape[0], blocks.shape[-1]
        _require(size % 2 == 0 and 0 < stages < 32 and outputs % (2 ** (stages - 1) * size) == 0)
    if role == "oft_diag":  # turns themselves; some early files hold something else by this name
        square = blocks @ blocks.swapaxes(-1, -2)
        _require(np.allclose(square, np.eye(blocks.shape[-1]), atol=0.02))
    return change


def _todays_glora(parts: dict[str, Array]) -> dict[str, Array]:
    """Return a GLoRA's tensors by their names since LyCORIS 2; before, 1 and 2 were the other way round."""
    if not parts.keys() >= set(GLORA) or any(parts[name].ndim < 2 for name in GLORA):
        return parts
    a1, a2, b1, b2 = (parts[name].shape for name in GLORA)
    if a1[1] == a2[0] == b1[1] == b2[0] or not a1[0] == a2[1] == b1[0] == b2[1]:
        return parts
    return parts | {one: parts[other] for one, other in zip(GLORA, (*GLORA[1::-1], *GLORA[:1:-1]), strict=True)}


def _glora(parts: Mapping[str, Array], alpha: float) -> GLoRA:
    """Return a GLoRA whose four factors fit one another."""
    _require(set(parts) == set(GLORA) and all(part.ndim in (2, 4) for part in parts.values()))
    a1, a2, b1, b2 = (parts[name] for name in GLORA)
    rank, inputs = a2.shape[:2]
    _require(rank > 0 and a1.shape[:2] == (inputs, rank) and b1.shape[1] == rank and b2.shape[:2] == (rank, inputs))
    _require(a1.size == a2.size == rank * inputs and b1.size == b1.shape[0] * rank)
    return GLoRA(dict(parts), alpha)


def _low_rank(A: Array, B: Array, mid: Array | None, alpha: float) -> LowRank:
    """Return a plain LoRA; LoCon's core of a convolution becomes part of its A."""
    _require(A.ndim in (2, 4) and B.ndim in (2, 4) and A.shape[0] > 0 and B.size == B.shape[0] * A.shape[0])
    if mid is not None:
        _require(mid.ndim == 4 and mid.shape[:2] == (A.shape[0], A.shape[0]) and A.size == A.shape[0] * A.shape[1])
        A = collapsed(mid, A)
    return LowRank(A, B.reshape(-1, A.shape[0]), alpha)


def _checked(parts: Mapping[str, Array], name: str, core: str) -> tuple[int, ...]:
    """Return the shape of one factor of a LoHa or LoKr after checking that its parts fit."""
    if name in parts:
        return parts[name].shape
    a, b, t = parts[f"{name}_a"], parts[f"{name}_b"], parts.get(core)
    _require(a.ndim == 2 and b.ndim >= 2)
    if t is None:
        _require(a.shape[1] == b.shape[0] > 0)
        return (a.shape[0], math.prod(b.shape[1:]))
    _require(t.ndim == 4 and b.ndim == 2 and t.shape[:2] == (a.shape[0], b.shape[0]))
    return (a.shape[1], b.shape[1], *t.shape[2:])


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("tensors that do not belong together")
