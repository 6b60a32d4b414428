"""A study of planted scores: what is planted is found, what is not is not, and every number leads to its picture."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limner.errors import UserError
from limner.evaluate.study import evaluate_study
from limner.evaluate.table import COLUMNS
from limner.metrics.scores import ArmScore, Design, ImageValue, Interval, Level, MetricScore, RunInfo, Scores
from limner.metrics.study import Study
from limner.rundir import read_json, write_json

ARMS = ("base", "lora", "full")
PROMPTS, IMAGES = 6, 2
Value = Callable[[str, np.random.Generator], float]


def interval(mean: float, images: int) -> Interval:
    return Interval(mean=mean, low=None, high=None, n_images=images, n_units=1, unit="image")


def metric(kind: str, value: Value, rng: np.random.Generator, *, images: int = IMAGES) -> MetricScore:
    """Make a metric whose values are those of `value`; with no images, one value that belongs to none."""
    arms: dict[str, ArmScore] = {}
    for arm in ARMS:
        rows = tuple(
            ImageValue(file=f"images/{'base' if arm == 'base' else 'tuned'}/subject-{p:02d}-{i:02d}.png",
                       prompt=f"subject/{p}", value=value(arm, rng))
            for p in range(PROMPTS) for i in range(images)
        )  # fmt: skip
        mean = float(np.mean([row.value for row in rows])) if rows else value(arm, rng)
        arms[arm] = ArmScore(score=interval(mean, len(rows)), beyond_limit=None, images=rows)
    return MetricScore(key=f"{kind}.eye", kind=kind, encoder="eye", title=kind, says="", better="higher",
                       sets=("subject",), relative_to_base=False, is_claimed=True, arms=arms, differences=(),
                       levels=(Level(name="within", title="real ones", value=0.8, pairs=3),))  # fmt: skip


def write(folder: Path, metrics: tuple[MetricScore, ...], **changes: object) -> Path:
    folder.mkdir(parents=True)
    runs = {arm: RunInfo(name=arm, folder=arm, settings={}) for arm in ARMS[1:]}
    design = Design(arms=ARMS, runs=runs, prompts={"subject": PROMPTS}, images={"subject": PROMPTS * IMAGES},
                    training_pictures=5, class_pictures=0, settings={"num_inference_steps": 9}, seed=0,
                    draws=10)  # fmt: skip
    scores = Scores(design=design.model_copy(update=changes), encoders=(), metrics=metrics, skipped={})
    path = folder / "comparison.json"
    write_json(path, scores.model_dump(mode="json"))
    return path


def make(folder: Path, subjects: int, seeds: int, *kinds: tuple[str, Value, int]) -> dict[tuple[str, int], Path]:
    rng = np.random.default_rng(0)
    return {
        (f"s{s}", k): write(folder / f"s{s}" / f"seed-{k}", tuple(metric(n, v, rng, images=i) for n, v, i in kinds))
        for s in range(subjects)
        for k in range(seeds)
    }


def planted(arm: str, rng: np.random.Generator) -> float:
    return 0.5 + 0.2 * (arm == "lora") + rng.normal() * 0.05


def null(arm: str, rng: np.random.Generator) -> float:
    return 0.5 + rng.normal() * 0.05


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("study")
    cells = make(folder, 5, 2, ("likeness", planted, 2), ("following", null, 2))
    return folder, evaluate_study(cells, folder / "study.json")


def test_what_is_planted_is_found_and_what_is_not_is_not(five: tuple[Path, Study]) -> None:
    likeness, following = five[1].metrics
    found = likeness.difference("lora", "base")
    assert (found.finding, found.conclusive, found.score.unit, found.score.n_units) == ("better", True, "subject", 5)
    assert found.score.mean == pytest.approx(0.2, abs=0.02)
    assert found.words.startswith("Better by +0.")
    assert found.needed == ""
    assert likeness.difference("full", "lora").finding == "worse"
    for one in (*following.differences, likeness.difference("full", "base")):
        assert one.finding == "no difference"
        assert "would have been found 4 times in 5" in one.words
        assert one.needed == ""


def test_subjects_are_told_one_by_one(five: tuple[Path, Study]) -> None:
    study = five[1]
    arm = study.metrics[0].arms["lora"]
    assert list(arm.subjects) == ["s0", "s1", "s2", "s3", "s4"]
    assert np.mean(list(arm.subjects.values())) == pytest.approx(arm.score.mean)
    assert study.metrics[0].levels[0].value == pytest.approx(0.8)
    assert [s.comparisons["1"] for s in study.design.subjects][:2] == [f"s{i}/seed-1/comparison.json" for i in (0, 1)]


def test_the_file_holds_what_was_returned_and_the_table_every_value(five: tuple[Path, Study]) -> None:
    folder, study = five
    assert Study.model_validate(read_json(folder / "study.json")) == study
    rows = list(csv.DictReader((folder / "study.csv").read_text(encoding="utf-8").splitlines()))
    assert tuple(rows[0]) == ("subject", "seed", *COLUMNS)
    assert len(rows) == 5 * 2 * 2 * len(ARMS) * PROMPTS * IMAGES
    lora = [float(r["value"]) for r in rows if (r["arm"], r["metric"]) == ("lora", "likeness.eye")]
    assert np.mean(lora) == pytest.approx(study.metrics[0].arms["lora"].score.mean)
    first = next(r for r in rows if r["arm"] == "full" and r["prompt"] == "3" and r["image"] == "1")
    assert first["file"] == "s0/seed-0/full/images/tuned/subject-03-01.png"
    assert next(r for r in rows if r["arm"] == "base")["file"].startswith("s0/seed-0/lora/images/base/")


def test_few_subjects_claim_nothing_and_say_what_is_needed(tmp_path: Path) -> None:
    study = evaluate_study(make(tmp_path, 2, 1, ("likeness", planted, 2)), tmp_path / "study.json")
    found = study.metrics[0].difference("lora", "base")
    assert (found.finding, found.conclusive) == ("not conclusive", False)
    assert "nothing is claimed from 2 subjects, it takes 5 or more" in found.words
    assert "it takes about 5 such subjects" in found.needed
    assert study.limits[1].startswith("One training seed")


def test_one_subject_speaks_of_its_prompts(tmp_path: Path) -> None:
    study = evaluate_study(make(tmp_path, 1, 1, ("likeness", planted, 2)), tmp_path / "study.json")
    found = study.metrics[0].difference("lora", "base")
    assert (study.design.unit, found.score.n_units, found.finding) == ("prompt", PROMPTS, "better")
    assert "one subject × one training seed" in found.words
    assert study.limits[0].startswith("One subject: intervals speak of other prompts")


def test_values_that_belong_to_no_image_count_once_a_training(tmp_path: Path) -> None:
    study = evaluate_study(
        make(tmp_path, 6, 2, ("likeness", planted, 0), ("following", null, 2)), tmp_path / "study.json"
    )
    found = study.metrics[0].difference("lora", "base")
    assert (found.score.n_images, found.score.n_units, found.finding) == (12, 6, "better")
    row = next(csv.DictReader((tmp_path / "study.csv").read_text(encoding="utf-8").splitlines()))
    assert (row["prompt"], row["file"]) == ("", "")


def test_scores_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    cells = make(tmp_path, 2, 2, ("likeness", null, 2))
    with pytest.raises(UserError, match="3 comparisons are not 2 seeds of 2 subjects"):
        evaluate_study(dict(list(cells.items())[:3]), tmp_path / "study.json")
    other = write(tmp_path / "other", (metric("likeness", null, np.random.default_rng(1)),), settings={"guidance": 2})
    with pytest.raises(UserError, match=r"other/comparison.json: has other settings \(.*guidance"):
        evaluate_study({**cells, ("s1", 1): other}, tmp_path / "study.json")
    assert not (tmp_path / "study.json").exists()


def test_a_metric_that_one_subject_lacks_is_left_out_and_said(tmp_path: Path) -> None:
    cells = make(tmp_path, 2, 1, ("likeness", null, 2), ("following", null, 2))
    only = write(tmp_path / "less", (metric("likeness", null, np.random.default_rng(1)),))
    study = evaluate_study({**cells, ("s1", 0): only}, tmp_path / "study.json")
    assert [m.kind for m in study.metrics] == ["likeness"]
    assert study.skipped == {"following.eye": "not taken for every subject and seed"}
