"""How much energy the hardware has used, where it tells: an NVIDIA card by its driver, a processor by its counter."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """A counter of joules that only goes up."""

    what: str
    """Whose energy it counts, and who says so."""
    joules: Callable[[], float]
    """Returns the joules until now; only differences mean something."""


def find_meter(device: torch.device, *, powercap: Path = POWERCAP) -> Meter | str:
    """Return what counts the energy of a device, or why nothing does."""
    if device.type == "cuda":
        return _graphics_card(device)
    if device.type != "cpu":
        return f"{device.type} devices do not tell their energy"
    return _packages(powercap)


def _graphics_card(device: torch.device) -> Meter | str:
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return "the card's energy is told through NVML, which Python reads with: pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
        card = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except nvml.NVMLError as error:
        return f"this card does not tell its energy ({error})"
    what = f"the whole card {torch.cuda.get_device_name(device)}, by NVML"
    return Meter(what, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3)


def _packages(powercap: Path) -> Meter | str:
    """Read the processor's packages (RAPL), with all that ran on them; their counters begin anew from time to time."""
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages: list[Path] = []
    for zone in zones:
        with suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package") and _microjoules(zone / "energy_uj") >= 0:
                packages.append(zone)
    if not packages:
        return "this processor's energy counter may not be read" if zones else "this machine does not tell its energy"
    spans = {zone: _microjoules(zone / "max_energy_range_uj") + 1 for zone in packages}
    last = {zone: _microjoules(zone / "energy_uj") for zone in packages}
    total = 0

    def joules() -> float:
        nonlocal total
        for zone in packages:
            now = _microjoules(zone / "energy_uj")
            total += (now - last[zone]) % spans[zone]
            last[zone] = now
        return total / 1e6

    count = f"{len(packages)} packages" if len(packages) > 1 else "package"
    return Meter(f"the processor's {count} with all that ran on it, by RAPL", joules)


def _microjoules(file: Path) -> int:
    return int(file.read_text())
