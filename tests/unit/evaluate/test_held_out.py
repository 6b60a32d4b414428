"""Likeness is measured against held-out pictures where there are any; copying still against what was learned."""

from __future__ import annotations

import pytest

from limner.evaluate.evaluate import evaluate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.scores import Scores
from limner.report.report import report
from limner.rundir import RunDir, read_json, write_json
from tests.unit.evaluate.synthetic import BACKGROUNDS, make_run, star

BUCKETS = [
    {
        "size": [64, 64], "count": 4, "lost_share": 0.05, "most_lost": ["a & b.png", 0.125], "scales": [0.5, 1.0],
        "batches": [[2, 2]],
    },
    {
        "size": [48, 80], "count": 1, "lost_share": 0.0, "most_lost": ["c.png", 0.0], "scales": [0.5, 0.5],
        "batches": [[1, 1]],
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Scores, Scores]:
    """Score one run without held-out pictures, then with three; its manifest has two shapes and one exclusion."""
    run = make_run(tmp_path_factory.mktemp("runs") / "star", prompts=6, images=2)
    plain = evaluate([run], run.scores, encoders=[ColourHistogram()])
    run.held_out.mkdir()
    rows = []
    for i, background in enumerate(list(BACKGROUNDS.values())[5:8]):
        star(100 + i, background).save(run.held_out / f"{i}.png")
        rows.append({"file": f"{i}.png"})
    write_json(run.held_out / "manifest.json", {"pictures": rows})
    return run, plain, evaluate([run], run.scores, encoders=[ColourHistogram()])


def test_likeness_moves_and_copying_stays(both: tuple[RunDir, Scores, Scores]) -> None:
    _, plain, held = both
    assert (plain.design.held_out_pictures, held.design.held_out_pictures) == (0, 3)

    def values(scores: Scores, kind: str) -> list[float]:
        metric = scores.find(kind)
        assert metric is not None
        return [image.value for image in metric.arms["tuned"].images]

    assert values(plain, "subject_fidelity") != values(held, "subject_fidelity")
    assert values(plain, "class_kept") != values(held, "class_kept")
    assert values(plain, "copying") == values(held, "copying")
    fidelity = held.find("subject_fidelity")
    assert fidelity is not None
    assert next(level.pairs for level in fidelity.levels if level.name == "within") == 3


def test_the_report_says_what_likeness_was_measured_against(both: tuple[RunDir, Scores, Scores]) -> None:
    run = both[0]
    page = report([run], run.scores, run.report).read_text(encoding="utf-8")
    assert "Likeness is measured against the 3 held-out pictures, which were not learned from" in page
    assert page.count('alt="held-out picture') == 3


def test_the_report_shows_how_the_pictures_were_fitted(both: tuple[RunDir, Scores, Scores]) -> None:
    run = both[0]
    manifest = run.pictures / "manifest.json"
    facts = {"given": 6, "batch": 2, "buckets": BUCKETS, "exclusions": [{"name": "tiny.png", "reason": "8×8"}]}
    write_json(manifest, {**read_json(manifest), **facts})
    page = report([run], run.scores, run.report).read_text(encoding="utf-8")
    assert "6 given, 1 left out, 2 shapes" in page
    assert "12.5%, a &amp; b.png" in page
    assert "<td>2 of 2</td>" in page
    assert "<td>1 of 1</td>" in page
    assert "Left out: tiny.png, 8×8." in page
