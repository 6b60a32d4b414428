from __future__ import annotations

from pathlib import Path

import pytest

from limner.evaluate.encoders import Panel
from limner.evaluate.ladder import evaluate_ladder
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.ladder import Ladder
from limner.metrics.standard import standard_metrics
from limner.rundir import RunDir, read_json, write_json
from tests.unit.evaluate.synthetic import BACKGROUNDS, make_run, member, star


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Ladder]:
    """A run whose base draws others at every number of steps, and which draws the star from strength 1 on."""
    run = make_run(tmp_path_factory.mktemp("runs") / "star-1", prompts=6, images=1)
    for strength in (0.0, 0.5, 1.0):
        for steps in (4, 8):
            folder = run.ladder / f"{strength:g}x{steps}"
            folder.mkdir(parents=True)
            rows = []
            for p, (colour, rgb) in enumerate(list(BACKGROUNDS.items())[:6]):
                (star if strength == 1 else member)(p, rgb).save(folder / f"subject-{p:02d}-00.png")
                rows.append({"file": f"subject-{p:02d}-00.png", "prompt": f"a sks critter on {colour}",
                             "plain_prompt": f"a critter on {colour}", "set": "subject", "prompt_index": p,
                             "image_index": 0, "seed": p})  # fmt: skip
            write_json(folder / "manifest.json", {"strength": strength, "num_inference_steps": steps, "images": rows})
    run.adapter.touch()
    encoder = ColourHistogram()
    panel = Panel((encoder,), tuple(standard_metrics([encoder])))
    return run, evaluate_ladder(run, panel)


def test_every_place_is_scored_by_every_prompt(scored: tuple[RunDir, Ladder]) -> None:
    run, ladder = scored
    assert (ladder.strengths, ladder.steps) == ((0.0, 0.5, 1.0), (4, 8))
    assert [metric.key for metric in ladder.metrics] == ["subject_fidelity.colour_histogram"]
    for rung in ladder.rungs:
        (score,) = rung.scores.values()
        assert score.score.n_images == 6
        assert all((run.path / image.file).is_file() for image in score.images)


def test_likeness_is_highest_where_the_star_is(scored: tuple[RunDir, Ladder]) -> None:
    _, ladder = scored
    at = {rung.place.name: next(iter(rung.scores.values())).score.mean for rung in ladder.rungs}
    assert at["0x4"] == at["0.5x4"] < at["1x4"] == at["1x8"]


def test_the_file_holds_what_is_returned(scored: tuple[RunDir, Ladder]) -> None:
    run, ladder = scored
    assert Ladder.model_validate(read_json(run.ladder_scores)) == ladder


def test_the_page_shows_it(scored: tuple[RunDir, Ladder], tmp_path: Path) -> None:
    from limner.evaluate.evaluate import evaluate
    from limner.report.report import report

    run, _ = scored
    evaluate([run], run.scores, encoders=[ColourHistogram()])
    page = report([run], run.scores, tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="strength"' in page
    assert "strength 0.5" in page
