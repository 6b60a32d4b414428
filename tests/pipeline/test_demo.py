"""The demo as it ships: the subject is learned, its class stays, and everything is where the last lines say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import limner
from limner.metrics.scores import Scores


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_its_subject_and_keeps_the_class(tmp_path: Path) -> None:
    run = limner.demo(tmp_path / "demo")
    scores = Scores.model_validate(json.loads(run.scores.read_text(encoding="utf-8")))
    fidelity = scores.find("subject_fidelity", "lite0")
    assert fidelity is not None
    assert fidelity.differences[0].finding == "better"
    assert fidelity.differences[0].score.low > 0
    kept = scores.find("class_kept", "lite0")
    assert kept is not None
    level = {one.name: one.value for one in kept.levels}
    tuned = kept.arms["tuned"].score.mean
    assert tuned - level["between"] < (level["within"] - level["between"]) / 3, "the class turns into the subject"
    assert "<html" in run.report.read_text(encoding="utf-8")
    assert run.adapter.stat().st_size < 6e6
