"""What the plan is compared with: the phases in the log of a real run."""

from __future__ import annotations

from pathlib import Path

from benchmarks.plan_accuracy import measured
from limner import run
from limner.families.source import ASSETS


def test_phases_of_a_real_log_are_added_up(random_base: Path, tmp_path: Path) -> None:
    """The UNet is read after the pictures are encoded: `load` is there twice, and no step was tried before."""
    settings = {"base": str(random_base), "steps": 1, "pictures.class_noun": "critter"}
    folder = run.train(ASSETS / "demo" / "critter", recipe="lora", settings=settings, run=tmp_path / "run")
    log = folder.read_log("phase")
    loads = [row for row in log if row["name"] == "load"]
    assert len(loads) == 2
    peaks, seconds = measured([{"event": "step", "step": 1}, *log])
    assert set(peaks) == {row["name"] for row in log} - {"probe"}
    assert peaks["load"] == max(row["peak_memory_gib"] for row in loads)
    assert seconds["load"] == sum(row["seconds"] for row in loads)


def test_a_step_on_trial_is_a_part_of_the_training() -> None:
    log = [{"event": "phase", "name": n, "peak_memory_gib": p, "seconds": 1} for n, p in (("probe", 3), ("train", 2))]
    assert measured(log) == ({"train": 3}, {"probe": 1, "train": 1})
