"""The benchmark of training on a GPU, on the CPU: its arms, its arithmetic, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_training


def test_rows_say_what_was_measured(random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.json"
    words = ["--device", "cpu", "--bases", random_base, "--subjects", 1, 2, "--seconds", 0, "--rank", 2, "--out", out]
    monkeypatch.setattr(sys, "argv", ["gpu_training", *map(str, words)])
    gpu_training.main()
    told = json.loads(out.read_text())
    one, two, low = told["rows"]
    assert [row["arm"]["subjects"] for row in told["rows"]] == [1, 2, 1]
    assert [row["arm"]["checkpointing"] for row in told["rows"]] == [False, False, True]
    for row in told["rows"]:
        count, operations = row["arm"]["subjects"], row["tflop_per_image"]
        assert row["steps"] == 3
        assert row["images_per_s"] == pytest.approx(1000 * count / row["step_ms"], rel=0.01)
        assert row["mfu"] == pytest.approx(row["images_per_s"] * operations / told["matrix_tflops"], abs=0.01)
    assert 1.2 < low["tflop_per_image"] / one["tflop_per_image"] < 1.6, "the blocks' forward twice"
    assert two["tflop_per_image"] == one["tflop_per_image"]
    assert told["not_measured"] == []


def test_the_most_important_comes_first() -> None:
    found = gpu_training.arms(["sd15", "sdxl"], [1, 16], ["off", "graph+compile", "graph"])
    said = [f"{arm.base} {arm.subjects} {'low' if arm.checkpointing else arm.fast}" for arm in found]
    assert said == [
        *[
            f"{base} {what}"
            for base in ("sd15", "sdxl")
            for what in ("1 graph", "16 graph", "1 off", "16 off", "1 low")
        ],
        *[f"{base} {count} graph+compile" for base in ("sd15", "sdxl") for count in (1, 16)],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "device='cuda': torch finds no CUDA GPU"),
        (["--device", "cpu", "--fast", "graph"], "fast='graph': needs an NVIDIA GPU, and this run computes on cpu."),
    ],
)
def test_what_needs_a_gpu_is_refused_in_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_training", *words])
    with pytest.raises(SystemExit) as stop:
        gpu_training.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(message)
    assert "\n" not in said
