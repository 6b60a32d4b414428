"""The demo, a third as long: the subject is learned, its class stays, everything is where the last lines say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import limner
from limner.metrics.scores import Scores


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_its_subject_with_each_method_and_keeps_the_class(tmp_path: Path) -> None:
    shorter = {
        "steps": 45, "prior.count": 24, "evaluation.images_per_class_prompt": 1, "evaluation.other_prompts": [],
    }  # fmt: skip
    page = limner.demo(tmp_path / "demo", settings=shorter)
    scores = Scores.model_validate(json.loads((page.parent / "comparison.json").read_text(encoding="utf-8")))
    fidelity = scores.find("subject_fidelity", "lite0")
    kept = scores.find("class_kept", "lite0")
    assert fidelity is not None
    assert kept is not None
    level = {one.name: one.value for one in kept.levels}
    for arm in ("lora", "dreambooth", "dreambooth-lora"):
        difference = fidelity.difference(arm, "base")
        assert difference.finding == "better", f"{arm}: {difference.words}"
        assert difference.score.low > 0
        tuned = kept.arms[arm].score.mean
        assert tuned - level["between"] < (level["within"] - level["between"]) / 3, f"{arm}: the class turns into it"
        assert (page.parent / arm / ("model" if arm == "dreambooth" else "adapter.safetensors")).exists()
    assert "<html" in page.read_text(encoding="utf-8")
    assert (page.parent / "lora" / "adapter.safetensors").stat().st_size < 6e6
