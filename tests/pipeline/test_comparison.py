"""Two methods of one subject, trained and then shown side by side, by the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from limner.cli import main
from limner.families.source import ASSETS
from limner.metrics.scores import Scores

PICTURES = ASSETS / "demo" / "critter"
FAST = (
    "pictures.class_noun=critter", "steps=2", "generation.num_inference_steps=2",
    "evaluation.images_per_prompt=1", "evaluation.images_per_class_prompt=1",
    'evaluation.prompts=["a photo of a {subject}", "a {subject} in the snow"]',
    'evaluation.other_prompts=["a photo of a house"]',
)  # fmt: skip


def limner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> tuple[int, str]:
    """Run the command line in this process; return exit code and last line."""
    monkeypatch.setattr(sys, "argv", ["limner", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), (out if stop.value.code == 0 else err).splitlines()[-1]


def test_lora_and_dreambooth_side_by_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, random_base: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / recipe for recipe in ("lora", "dreambooth")]
    for run in runs:
        prior = ("prior.count=2",) if run.name == "dreambooth" else ()
        words = ("train", PICTURES, "--recipe", run.name, "--run", run, f"base={random_base}", *FAST, *prior)
        code, line = limner(capsys, monkeypatch, *words)
        assert code == 0, line

    code, line = limner(capsys, monkeypatch, "report", *runs)
    assert code == 2
    assert re.search(r"comparison.json: is not there yet. Make it with: limner evaluate .*lora .*dreambooth$", line)

    assert limner(capsys, monkeypatch, "evaluate", *runs) == (0, str(tmp_path / "comparison.json"))
    scores = Scores.model_validate(json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8")))
    assert scores.design.arms == ("base", "lora", "dreambooth")
    assert [info.folder for info in scores.design.runs.values()] == ["lora", "dreambooth"]
    bases = [sorted((run / "images" / "base").glob("*.png")) for run in runs]
    assert [p.read_bytes() for p in bases[0]] == [p.read_bytes() for p in bases[1]]

    assert limner(capsys, monkeypatch, "report", *runs) == (0, str(tmp_path / "comparison.html"))
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "the whole model" in page
    assert "adapter.safetensors" in page
    for run in runs:
        assert f'<p class="run">{run.name}</p>' in page
    elsewhere = tmp_path / "pages" / "mine.html"
    assert limner(capsys, monkeypatch, "report", *runs, "--out", elsewhere) == (0, str(elsewhere))
    assert elsewhere.read_text(encoding="utf-8") == page
    code, line = limner(capsys, monkeypatch, "report", *runs, "--out", tmp_path)
    assert (code, "is a folder. Name the file to write" in line) == (2, True), line

    code, line = limner(capsys, monkeypatch, "evaluate", runs[0], runs[0])
    assert (code, "is named twice. Name each run once." in line) == (2, True), line
