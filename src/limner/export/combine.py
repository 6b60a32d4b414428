"""Several LoRAs as one, and one at another rank: added up, or what they agree on kept (TIES, DARE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from limner import low_rank
from limner.adapters.strength import Strength
from limner.errors import UserError
from limner.low_rank import Cut, Kept, Spectrum
from limner.seeds import seed_of
from limner.spec import Spec

State = Mapping[str, Tensor]
"""A LoRA's `state_dict`: `<path>.lora_A`, `.lora_B` and `.alpha` of each layer."""


class Combining(Spec):
    """How several LoRAs become one."""

    how: Literal["concat", "sum", "svd", "ties", "dare"] = "concat"
    """"concat" is exact, and the ranks add up; "svd" is the nearest to it at a smaller rank; "sum" adds A to A and B to
    B, for LoRAs of one rank that began alike, such as two states of one training; "ties" (arXiv:2306.01708) and "dare"
    (arXiv:2311.03099) keep part of each change, so that they get into each other's way less."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the result for svd, ties and dare; left out, the largest of the ranks that are merged."""
    energy: float | None = Field(default=None, gt=0, le=1)
    """Instead of a rank: the share of each layer's change to keep, such as 0.95."""
    density: float = Field(default=0.5, gt=0, lt=1)
    """Share of each change's numbers that ties (the largest) and dare (any, scaled up) keep."""
    seed: int = 0
    """Seed of what dare keeps."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the file; it is computed in float32 and cast once."""

    def cut(self, states: Sequence[State]) -> Cut:
        """Return how much of the merged change is kept."""
        if self.rank is not None or self.energy is not None:
            return Cut(rank=self.rank, energy=self.energy)
        return Cut(rank=max(A.shape[0] for state in states for name, A in state.items() if name.endswith(".lora_A")))


def layers_of(state: State) -> list[str]:
    """Return the paths of a LoRA's layers."""
    return sorted(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))


def factors(state: State, layer: str, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return a layer's A and B in float32, with alpha / rank and a strength folded into B."""
    A, B = state[f"{layer}.lora_A"].float(), state[f"{layer}.lora_B"].float()
    return A, B * (strength * float(state[f"{layer}.alpha"]) / A.shape[0])


def change_of(state: State, layer: str, strength: float = 1.0) -> Tensor:
    """Return what a LoRA adds to a layer's weight, in float32 and its shape."""
    A, B = factors(state, layer, strength)
    return (B @ A.flatten(1)).view(B.shape[0], *A.shape[1:])


def combine(loras: Sequence[tuple[State, Strength]], spec: Combining) -> tuple[dict[str, Tensor], dict[str, Kept]]:
    """Return several LoRAs, each at a strength, as one, and how much of each layer's change was kept.

    Raises:
        UserError: their layers have other shapes, or for "sum" other ranks.
    """
    cut, merged = spec.cut([state for state, _ in loras]), dict[str, Tensor]()
    kept: dict[str, Kept] = {}
    for layer in sorted({layer for state, _ in loras for layer in layers_of(state)}):
        having = [(state, s.of(layer)) for state, s in loras if f"{layer}.lora_A" in state]
        parts = [factors(state, layer, strength) for state, strength in having]
        _require_one_shape(layer, parts)
        if spec.how == "concat":
            A, B = torch.cat([A for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)
        elif spec.how == "sum":
            A, B = _sum(layer, having)
        else:
            change = _svd(parts) if spec.how == "svd" else low_rank.of_change(_agreed(layer, having, spec))
            A, B, kept[layer] = low_rank.cut(change, cut)
            A = A.view(-1, *parts[0][0].shape[1:])
        merged |= _as_lora(layer, A, B)
    return merged, kept


def resize(state: State, cut: Cut) -> tuple[dict[str, Tensor], dict[str, Kept]]:
    """Return a LoRA at another rank, the nearest to it there is, and how much of each layer's change was kept."""
    resized: dict[str, Tensor] = {}
    kept: dict[str, Kept] = {}
    for layer in layers_of(state):
        A, B = factors(state, layer)
        new_A, new_B, kept[layer] = low_rank.cut(low_rank.of_product(A.flatten(1), B), cut)
        resized |= _as_lora(layer, new_A.view(-1, *A.shape[1:]), new_B)
    return resized, kept


def _svd(parts: Sequence[tuple[Tensor, Tensor]]) -> Spectrum:
    """Return the sum of several products B A, taken apart."""
    A, B = torch.cat([A.flatten(1) for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)
    return low_rank.of_product(A, B)


def _agreed(layer: str, having: Sequence[tuple[State, float]], spec: Combining) -> Tensor:
    """Return what TIES or DARE make of several changes and their strengths."""
    from peft.utils.merge_utils import dare_linear, ties

    changes = [change_of(state, layer) for state, _ in having]
    weights = torch.tensor([strength for _, strength in having])
    if spec.how == "ties":
        return ties(changes, weights, spec.density)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(seed_of(spec.seed, "dare", layer))
        return dare_linear(changes, weights, spec.density)


def _sum(layer: str, having: Sequence[tuple[State, float]]) -> tuple[Tensor, Tensor]:
    """Return the sums of A and of B, each with the root of its strength, as peft's "linear" has them."""
    A, B = 0.0, 0.0
    ranks = [state[f"{layer}.lora_A"].shape[0] for state, _ in having]
    if len(set(ranks)) > 1:
        raise UserError(
            f"how=sum: the LoRAs have ranks {' and '.join(map(str, ranks))} at {layer}.",
            "Use how=concat, or how=svd rank=N.",
        )
    for (state, strength), rank in zip(having, ranks, strict=True):
        scale = strength * float(state[f"{layer}.alpha"]) / rank
        A = A + state[f"{layer}.lora_A"].float() * abs(scale) ** 0.5 * (1 if scale >= 0 else -1)
        B = B + state[f"{layer}.lora_B"].float() * abs(scale) ** 0.5
    return torch.as_tensor(A), torch.as_tensor(B)


def _require_one_shape(layer: str, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    shapes: list[tuple[Any, ...]] = [(B.shape[0], *A.shape[1:]) for A, B in parts]
    if len(set(shapes)) > 1:
        raise UserError(
            f"the LoRAs are for different models: {layer} is {' and '.join(map(str, dict.fromkeys(shapes)))} in them.",
            "Merge LoRAs of one base.",
        )


def _as_lora(layer: str, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    alpha = torch.tensor(float(A.shape[0]))
    return {f"{layer}.lora_A": A.contiguous(), f"{layer}.lora_B": B.contiguous(), f"{layer}.alpha": alpha}
