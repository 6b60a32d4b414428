"""LoRAs with random weights for whatever base, written as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.export.diffusers_lora import write_lora
from limner.families.family import Family


def write_random_lora(family: Family, path: Path, *, seed: int, token: str = "", **settings: Any) -> Path:
    """Write a LoRA that changes what the family draws; return its path."""
    adapter = LoRA(**{"rank": 2, "targets": "attention", "text_encoder": True, **settings}).attach(
        family, [SlotSettings(seed=seed)]
    )
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.slot_parameters(0).items():
        if name.endswith(".B"):
            parameter.detach().copy_(0.2 * torch.randn(parameter.shape, generator=draws))
    write_lora(adapter.state_dict(), path, {**family.facts, "token": token, "class_noun": "critter"})
    adapter.detach()
    return path
