"""Text states whitened for training, folded back into plain weights after it: small words weigh what colours do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DAMPING = 0.01  # directions of less variance than this are noise and stay small
CAPTIONS = 4000
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Whitening:
    """White states are (states - centre) @ matrix, which is symmetric."""

    centre: Tensor  # (width,)
    matrix: Tensor  # (width, width)

    def apply(self, states: Tensor) -> Tensor:
        """Return states (..., width) with about unit variance in every direction that says something."""
        return (states - self.centre) @ self.matrix

    def to_white(self, weights: Weights) -> Weights:
        """Return the weights of a UNet that does with white states what this one does with plain ones."""
        return self._turned(weights, self.matrix.inverse(), 1)

    def to_plain(self, weights: Weights) -> Weights:
        """Return the weights of a UNet that does with plain states what this one does with white ones."""
        return self._turned(weights, self.matrix, -1)

    def _turned(self, weights: Weights, matrix: Tensor, sign: int) -> Weights:
        """Multiply keys and values by `matrix`; what the centre adds to values goes into the output's bias.

        To keys it adds the same for every token, which the softmax does not see; attention sums to 1 over tokens.
        """
        turned = dict(weights)
        for name in weights:
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                turned[name] = weights[name].float() @ matrix
            if name.endswith("attn2.to_v.weight"):
                plain = weights[name].float() if sign > 0 else turned[name]
                out = name.replace("to_v.weight", "to_out.0.")
                added = weights[f"{out}weight"].float() @ (plain @ self.centre)
                turned[f"{out}bias"] = weights[f"{out}bias"].float() + sign * added
        return turned


def fit(states: Tensor) -> Whitening:
    """Return the whitening of text states (captions, tokens, width)."""
    some = states[torch.linspace(0, len(states) - 1, min(CAPTIONS, len(states))).long()].double().flatten(0, 1)
    values, vectors = torch.linalg.eigh(some.T.cov())
    matrix = vectors @ (values + DAMPING).rsqrt().diag() @ vectors.T
    return Whitening(some.mean(0).float(), matrix.float())


def load(captions: Path) -> Whitening:
    """Return the whitening that the cached captions were written with."""
    saved = torch.load(captions, weights_only=True, mmap=True)
    return Whitening(saved["centre"].clone(), saved["matrix"].clone())
