"""The processor's energy counter: whole packages, begun anew now and then; and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limner.energy import Meter, find_meter

CPU = torch.device("cpu")


def zone(powercap: Path, name: str, what: str, microjoules: int) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{what}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("9999999\n")
    return folder


def test_the_joules_of_whole_packages_are_added_also_when_a_counter_begins_anew(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    platform = zone(tmp_path, "intel-rapl:2", "psys", 5)
    meter = find_meter(CPU, powercap=tmp_path)
    assert isinstance(meter, Meter)
    assert "2 packages" in meter.what
    before = meter.joules()
    (first / "energy_uj").write_text("500000")
    (second / "energy_uj").write_text("250000")
    (platform / "energy_uj").write_text("9000000")
    assert meter.joules() - before == pytest.approx(1.75)
    assert meter.joules() - before == pytest.approx(1.75)


def test_a_machine_that_does_not_tell_is_said(tmp_path: Path) -> None:
    assert find_meter(CPU, powercap=tmp_path / "none") == "this machine does not tell its energy"
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert find_meter(CPU, powercap=tmp_path) == "this processor's energy counter may not be read"
    assert "mps" in str(find_meter(torch.device("mps"), powercap=tmp_path))
