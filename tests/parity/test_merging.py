"""LoRAs made one of several, against peft's own add_weighted_adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from limner.adapters.strength import Strength
from limner.export.combine import Combining, change_of, combine

WEIGHTS = {"one": 0.7, "two": -0.4}
RANK = 4


class Net(nn.Module):
    """A linear layer and a convolution, named as a UNet's are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 10)
        self.conv = nn.Conv2d(6, 8, 3)


def with_peft(combination: str, **options: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Return two random LoRAs, and the changes of weight that peft merges them to."""
    model = get_peft_model(Net(), LoraConfig(r=RANK, lora_alpha=8, target_modules=["linear", "conv"]), "one")
    model.add_adapter("two", LoraConfig(r=RANK, lora_alpha=8, target_modules=["linear", "conv"]))
    states: list[dict[str, Tensor]] = []
    for name in WEIGHTS:
        state = {}
        for path in ("linear", "conv"):
            layer = model.base_model.model.get_submodule(path)
            A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
            A.data, B.data = torch.randn_like(A), torch.randn_like(B)
            state |= {f"unet.{path}.lora_A": A.data, f"unet.{path}.lora_B": B.data.flatten(1)}
            state[f"unet.{path}.alpha"] = torch.tensor(8.0)
        states.append(state)
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "merged", combination_type=combination, **options)
    layers = {path: model.base_model.model.get_submodule(path) for path in ("linear", "conv")}
    return states, {path: layer.get_delta_weight("merged").detach() for path, layer in layers.items()}


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ({"how": "concat"}, "cat", {}),
        ({"how": "sum"}, "linear", {}),
        ({"how": "svd", "rank": 3}, "svd", {"svd_rank": 3}),
        ({"how": "svd"}, "svd", {}),
        ({"how": "ties", "rank": 6, "density": 0.4}, "ties_svd", {"svd_rank": 6, "density": 0.4}),
    ],
)
def test_what_peft_merges_we_merge_alike(ours: dict[str, Any], theirs: str, options: dict[str, Any]) -> None:
    states, wanted = with_peft(theirs, **options)
    pairs = [(state, Strength(weight)) for state, weight in zip(states, WEIGHTS.values(), strict=True)]
    merged, _ = combine(pairs, Combining(**ours))
    for path, change in wanted.items():
        torch.testing.assert_close(change_of(merged, f"unet.{path}"), change, rtol=1e-4, atol=1e-4)


def test_dare_drops_and_scales_up_the_same_every_time() -> None:
    states, _ = with_peft("cat")
    pairs = [(state, Strength()) for state in states]
    before = torch.random.get_rng_state()
    merged = [combine(pairs, Combining(how="dare", energy=1.0, density=0.3, seed=seed))[0] for seed in (1, 1, 2)]
    one, again, other = (change_of(state, "unet.linear") for state in merged)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(before, torch.random.get_rng_state())
    full = [change_of(state, "unet.linear") / 0.3 for state in states]
    possible = torch.stack([torch.zeros_like(one), full[0], full[1], full[0] + full[1]])
    assert float((possible - one).abs().amin(0).max()) < 1e-3  # each number is dropped or scaled up in each
