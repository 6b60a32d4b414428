from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from limner.errors import UserError
from limner.evaluate.evaluate import evaluate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.lite0 import Lite0
from limner.metrics.metric import Metric
from limner.metrics.questions import CLASS_DRIFT, CLASS_KEPT, SUBJECT_FIDELITY
from limner.metrics.scores import Scores
from limner.metrics.standard import standard_metrics
from limner.rundir import RunDir, read_json, write_json
from tests.unit.evaluate.synthetic import make_arm, make_run


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Scores]:
    run = make_run(tmp_path_factory.mktemp("runs") / "star", prompts=7, images=2)
    return run, evaluate([run], run.scores, encoders=[Lite0(), ColourHistogram()])


def test_a_planted_likeness_is_found(scored: tuple[RunDir, Scores]) -> None:
    for encoder in ("lite0", "colour_histogram"):
        metric = scored[1].find("subject_fidelity", encoder)
        assert metric is not None
        difference = metric.differences[0]
        assert difference.conclusive, difference.words
        assert difference.finding == "better", difference.words
        assert difference.score.low is not None
        assert difference.score.low > 0
        assert difference.p is not None
        assert difference.p < 0.05


def test_fidelity_lies_between_its_levels(scored: tuple[RunDir, Scores]) -> None:
    metric = scored[1].find("subject_fidelity", "lite0")
    assert metric is not None
    level = {level.name: level.value for level in metric.levels}
    assert level["between"] < level["within"]
    assert metric.arms["base"].score.mean == pytest.approx(level["between"], abs=0.1)
    assert metric.arms["tuned"].score.mean == pytest.approx(level["within"], abs=0.1)


def test_a_class_that_was_kept_is_not_called_damaged(scored: tuple[RunDir, Scores]) -> None:
    metric = scored[1].find("class_kept", "lite0")
    assert metric is not None
    assert metric.differences[0].finding == "no difference", metric.differences[0].words


def test_every_mean_is_the_mean_of_values_whose_pictures_exist(scored: tuple[RunDir, Scores]) -> None:
    run, scores = scored
    assert scores.metrics
    for metric in scores.metrics:
        for arm in metric.arms.values():
            mean = math.fsum(image.value for image in arm.images) / len(arm.images)
            assert mean == pytest.approx(arm.score.mean, abs=1e-9)
            assert all((run.path / image.file).is_file() for image in arm.images)


def test_the_file_holds_what_is_returned_and_follows_its_schema(scored: tuple[RunDir, Scores]) -> None:
    run, scores = scored
    assert Scores.model_validate(json.loads(run.scores.read_text())) == scores
    described = Scores.model_json_schema()["$defs"]
    lacking = [f"{n}.{f}" for n, d in described.items() for f, v in d["properties"].items() if "description" not in v]
    assert not lacking


def test_images_beyond_the_closest_two_training_pictures_are_counted(scored: tuple[RunDir, Scores]) -> None:
    metric = scored[1].find("copying")
    assert metric is not None
    limit = next(level.value for level in metric.levels if level.is_limit)
    for arm in metric.arms.values():
        assert arm.beyond_limit == sum(image.value > limit for image in arm.images)


def test_identical_arms_differ_by_exactly_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "same", tuned_like_base=True, prompts=6, images=1)
    metrics = [*standard_metrics([ColourHistogram()]), Metric(CLASS_DRIFT, "lite0"), Metric(CLASS_KEPT, "lite0")]
    scores = evaluate([run], run.scores, encoders=[ColourHistogram(), Lite0()], metrics=metrics, batch=5)
    for metric in scores.metrics:
        for difference in metric.differences:
            assert (difference.score.mean, difference.score.low, difference.score.high) == (0, 0, 0)
            assert difference.finding == "no difference"
            assert not difference.conclusive
            assert difference.p in (1.0, None)


def test_few_images_say_that_nothing_can_be_claimed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "few", prompts=2, images=2)
    metric = evaluate([run], run.scores, encoders=[ColourHistogram()]).find("subject_fidelity")
    assert metric is not None
    difference = metric.differences[0]
    assert not difference.conclusive
    assert difference.words.startswith("Not conclusive: only 4 images per side from 2 prompts: interval is ±")
    assert "no difference can be claimed" in difference.words


def test_one_image_has_no_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", prompts=1, images=1)
    scores = evaluate([run], run.scores, encoders=[ColourHistogram()])
    metric = scores.find("subject_fidelity")
    assert metric is not None
    assert metric.arms["tuned"].score.low is None
    assert not metric.differences[0].conclusive
    assert "diversity.colour_histogram" in scores.skipped


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("num_inference_steps", 30, "base used 25 steps, tuned 30."),
        ("guidance_scale", 7.5, "base used guidance 4.0, tuned 7.5."),
        ("scheduler", "euler", "base used the sampler ddim, tuned euler."),
        ("resolution_px", 128, "base used 64 px, tuned 128."),
        ("negative_prompt", "fog", "base used the negative prompt '', tuned fog."),
        ("base", "another", "base is tiny, tuned was made with another."),
        (
            "identity",
            {"unet": "f" * 16},
            "base is tiny (0123456789abcdef), tuned was made with tiny (ffffffffffffffff).",
        ),
    ],
)
def test_arms_made_differently_are_not_compared(tmp_path: Path, setting: str, value: object, words: str) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    other = {"identity": {"unet": "f" * 16}} if setting == "base" else {}
    make_arm(run, "tuned", tuned=True, prompts=1, images=1, **{setting: value}, **other)
    with pytest.raises(UserError, match=f"Comparison refused: {re.escape(words)}"):
        evaluate([run], run.scores, encoders=[ColourHistogram()])


def test_arms_with_other_pairs_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=2, images=2)
    make_arm(run, "tuned", tuned=True, prompts=2, images=1)
    with pytest.raises(UserError, match='tuned lacks an image .*set "class", prompt 0, image 1'):
        evaluate([run], run.scores, encoders=[ColourHistogram()])


def test_arms_with_other_seeds_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    manifest = read_json(run.images / "tuned" / "manifest.json")
    manifest["images"][0]["seed"] += 1
    write_json(run.images / "tuned" / "manifest.json", manifest)
    with pytest.raises(UserError, match="Comparison refused: base made .* with seed"):
        evaluate([run], run.scores, encoders=[ColourHistogram()])


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_run_without_images_says_what_to_do(tmp_path: Path, side: str) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    (run.images / side / "manifest.json").unlink()
    with pytest.raises(UserError, match=f"run: has no images of {side} yet. Make them with: limner evaluate .*run$"):
        evaluate([run], run.scores, encoders=[ColourHistogram()])


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    (run.images / "tuned" / "class-00-00.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="class-00-00.png: cannot be read"):
        evaluate([run], run.scores, encoders=[ColourHistogram()])


def test_the_batch_size_and_the_number_of_runs_do_not_matter(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=6, images=2)
    one, many, again = (evaluate([run], run.scores, encoders=[ColourHistogram()], batch=b) for b in (1, 32, 32))
    assert one == many == again


def test_progress_ends_where_it_should(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    calls: list[tuple[int, int, str]] = []
    evaluate([run], run.scores, encoders=[ColourHistogram()], batch=4, progress=lambda *call: calls.append(call))
    done, total, what = calls[-1]
    assert done == total > 13
    assert what == "pictures seen by colour_histogram"


def test_a_metric_without_its_encoder_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    scores = evaluate([run], run.scores, encoders=[ColourHistogram()], metrics=[Metric(SUBJECT_FIDELITY, "dino")])
    assert scores.skipped == {"subject_fidelity.dino": "no encoder named dino was given"}
