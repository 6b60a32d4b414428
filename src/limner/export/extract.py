"""A LoRA out of a whole model: the difference to its base, layer by layer, at a smaller rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limner import low_rank
from limner.low_rank import Cut, Kept

HALVES = (torch.float16, torch.bfloat16)


@dataclass
class Extracted:
    """A LoRA that holds how a model differs from its base, and what it cannot hold."""

    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    """By layer."""
    others: dict[str, float] = field(default_factory=dict[str, float])
    """Energy of the change of each weight that no LoRA holds: norms, biases, tables."""

    def take(self, root: str, base: nn.Module, tuned: nn.Module, cut: Cut) -> None:
        """Add one part ("unet", "text_encoder" ...) of a model and of its base, which have the same layers."""
        held = {name for name, layer in base.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        for name, delta in changes(base, tuned):
            layer, _, kind = name.rpartition(".")
            if kind == "weight" and layer in held:
                A, B, kept = low_rank.cut(low_rank.of_change(delta), cut)
                path = f"{root}.{layer}"
                self.kept[path] = kept
                self.state |= {
                    f"{path}.lora_A": A.view(-1, *delta.shape[1:]),
                    f"{path}.lora_B": B,
                    f"{path}.alpha": torch.tensor(float(kept.rank)),
                }
            else:
                self.others[f"{root}.{name}"] = float(delta.double().square().sum())


def changes(base: nn.Module, tuned: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and change, in float32, of each weight that differs by more than the rounding of a number format."""
    new = dict(tuned.named_parameters())
    for name, old in base.named_parameters():
        weight, own = new[name].detach().float(), old.detach().float()
        if not _is_rounded(weight, own):
            yield name, weight - own


def _is_rounded(a: Tensor, b: Tensor) -> bool:
    """Tell whether two weights are equal, or one is the other rounded to a half-precision format."""
    return torch.equal(a, b) or any(
        torch.equal(a.to(half), b.to(half))
        and (torch.equal(a, a.to(half).float()) or torch.equal(b, b.to(half).float()))
        for half in HALVES
    )
