"""One training step of N subjects: N stacked LoRAs on one base, against peft's LoRA one subject at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.families.load import load

RANK = 8
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
SUBJECTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Row:
    """The median time of a step, forward and backward, one picture per subject."""

    name: str
    subjects: int
    step_ms: float


def measure(base: str, *, device: str, rounds: int) -> list[Row]:
    """Time every arm, interleaved in each round, so that a busy moment of the machine hits all of them alike."""
    arms = {f"Limner, {n} stacked": (n, limner_step(base, n, device)) for n in SUBJECTS}
    arms["peft"] = (1, peft_step(base, device))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 2):
        for name, (_, step) in arms.items():
            seconds = timed(step, device)
            if number >= 2:  # the first two rounds fill caches
                times[name].append(seconds)
    return [Row(name, arms[name][0], 1000 * statistics.median(taken)) for name, taken in times.items()]


def limner_step(base: str, subjects: int, device: str) -> Callable[[], None]:
    """Return a step of `subjects` stacked slots."""
    family = load(base, dtype=torch.float32, device=device)
    unet = family.unet
    adapter = LoRA(rank=RANK, targets="attention").attach(family, [SlotSettings(seed=seed) for seed in range(subjects)])
    inputs = batch(unet, subjects, device)

    def step() -> None:
        adapter.zero_grad()
        unet(**inputs).sample.square().flatten(1).mean(dim=1).sum().backward()

    return step


def peft_step(base: str, device: str) -> Callable[[], None]:
    """Return a step of one subject with peft's own LoRA layers on the same targets."""
    from peft import LoraConfig, inject_adapter_in_model

    unet: Any = load(base, dtype=torch.float32, device=device).unet
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), unet)
    learning = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    inputs = batch(unet, 1, device)

    def step() -> None:
        for parameter in learning:
            parameter.grad = None
        unet(**inputs).sample.square().mean().backward()

    return step


def batch(unet: Any, rows: int, device: str) -> dict[str, torch.Tensor]:
    """Return random inputs of the UNet's own shapes, one row per subject."""
    size, channels, width = unet.config.sample_size, unet.config.in_channels, unet.config.cross_attention_dim
    draws = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(rows, channels, size, size, generator=draws).to(device),
        "timestep": torch.randint(1000, (rows,), generator=draws).to(device),
        "encoder_hidden_states": torch.randn(rows, 77, width, generator=draws).to(device),
    }


def timed(step: Callable[[], None], device: str) -> float:
    """Return the seconds that a step takes, with the device's queue empty before and after."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    begun = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begun
