"""What is planted must be found: a destroyed model is worst, an unchanged one differs nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from limner.evaluate.encoders import Panel
from limner.evaluate.evaluate import evaluate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.lite0 import Lite0
from limner.metrics.published import load_encoder, load_quality
from limner.metrics.scores import Scores
from limner.metrics.standard import quality_metric, standard_metrics
from limner.rundir import RunDir, read_json, write_json
from tests.encoders import make_aesthetic, make_clip, make_dino
from tests.unit.evaluate.synthetic import BACKGROUNDS, make_run, member

DESTROYED = {"noise": "full", "grey": "textual_inversion"}
"""Kinds of adapter whose runs draw nothing but this."""


def add_masks(run: RunDir) -> None:
    """Mask all that is not background in the training pictures."""
    manifest = read_json(run.pictures / "manifest.json")
    for row in manifest["pictures"]:
        picture = Image.open(run.pictures / row["file"]).convert("RGB")
        background = Image.new("RGB", picture.size, picture.getpixel((0, 0)))  # type: ignore[arg-type]
        mask = ImageChops.difference(picture, background).convert("L").point(lambda v: 255 * (v > 8))
        row["mask"] = row["file"].replace(".png", "-mask.png")
        mask.save(run.pictures / row["mask"])
    write_json(run.pictures / "manifest.json", manifest)


def add_others(run: RunDir) -> None:
    """Add three other subjects, each on four backgrounds."""
    for number in range(3):
        folder = run.distractors / f"other-{number}"
        folder.mkdir(parents=True)
        for i, rgb in enumerate(list(BACKGROUNDS.values())[:4]):
            member(number * 7 + 1, rgb).save(folder / f"{i}.png")
        write_json(folder / "manifest.json", {"pictures": [{"file": f"{i}.png"} for i in range(4)]})


def destroy(run: RunDir, how: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    pictures = noise if how == "noise" else np.full((1, 64, 64, 3), 127, dtype=np.uint8)
    for number, path in enumerate(sorted((run.images / "tuned").glob("*.png"))):
        Image.fromarray(pictures[number % len(pictures)]).save(path)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Score an arm that learned the star, two that were destroyed and one that is the base."""
    folder = tmp_path_factory.mktemp("runs")
    sound = make_run(folder / "sound", prompts=6, images=2, prior=False)
    add_masks(sound)
    add_others(sound)
    runs = [sound]
    for how, kind in DESTROYED.items():
        runs.append(make_run(folder / how, prompts=6, images=2, kind=kind, prior=False))
        destroy(runs[-1], how)
    runs.append(make_run(folder / "same", prompts=6, images=2, kind="pivotal", tuned_like_base=True, prior=False))
    return evaluate(runs, folder / "scores.json", encoders=[Lite0(), ColourHistogram()])


WORST = ("dreambooth", "textual-inversion")
FROM_WHICH_DESTRUCTION_GAINS = {"class_kept"}
"""It asks only whether the class turns into the subject, and noise does not: how far it moved is class_drift's."""


def test_a_destroyed_model_scores_worst_wherever_a_direction_is_wanted(arms: Scores) -> None:
    asked = [m for m in arms.metrics if m.better != "neither" and m.kind not in FROM_WHICH_DESTRUCTION_GAINS]
    assert {"masked_fidelity", "identification", "class_kd", "class_mmd", "class_drift"} <= {m.kind for m in asked}
    for metric in asked:
        if metric.encoder == "colour_histogram":
            continue  # grey is a colour like others
        sign = 1 if metric.better == "higher" else -1
        value = {arm: sign * score.score.mean for arm, score in metric.arms.items()}
        for worst in WORST:
            assert value[worst] <= min(value["lora"], value["base"], value["pivotal"]), f"{metric.key}: {value}"


def test_an_unchanged_model_differs_nowhere(arms: Scores) -> None:
    for metric in arms.metrics:
        difference = metric.difference("pivotal", "base")
        assert (difference.score.mean, difference.score.low, difference.score.high) == (0, 0, 0), metric.key
        assert difference.finding == "no difference"


def test_the_set_has_moved_further_than_other_seeds_move_it_only_where_it_was_destroyed(arms: Scores) -> None:
    for kind in ("class_kd", "class_mmd"):
        metric = arms.find(kind)
        assert metric is not None
        (null,) = metric.levels
        assert null.name == "another_seed"
        assert metric.arms["lora"].score.mean < null.value
        assert all(metric.arms[worst].score.mean > null.value for worst in WORST)
        for arm in metric.arms.values():
            mean = sum(image.value for image in arm.images) / len(arm.images)
            assert mean == pytest.approx(arm.score.mean, abs=1e-9)


def test_the_star_is_found_again_without_its_background_and_known_among_others(arms: Scores) -> None:
    masked, known = arms.find("masked_fidelity"), arms.find("identification")
    assert masked is not None
    assert known is not None
    for metric in (masked, known):
        assert metric.difference("lora", "base").finding == "better"
    assert known.arms["lora"].score.mean == 1
    assert {level.name: level.value for level in known.levels} == {"chance": 0.25, "within": 1}
    assert arms.design.masked_pictures == 5
    assert arms.design.distractors == {"other-0": 4, "other-1": 4, "other-2": 4}


def test_of_the_bases_own_images_one_in_twenty_is_called_near(arms: Scores) -> None:
    metric = arms.find("copies")
    assert metric is not None
    assert metric.arms["base"].score.mean == pytest.approx(1 / 12)  # of 12 images the quantile leaves out the nearest
    assert metric.arms["lora"].score.mean > 0.5


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=2, images=1)
    skipped = evaluate([run], run.scores, encoders=[Lite0()]).skipped
    assert skipped["masked_fidelity.lite0"].startswith("no training picture has a mask")
    assert "evaluation.distractors" in skipped["identification.lite0"]
    assert skipped["class_fd.lite0"] == "it takes 2,000 images of each arm, and there are 2"


@pytest.mark.parametrize(("make", "key"), [(make_clip, "preference.judge"), (make_aesthetic, "aesthetic.judge")])
def test_a_model_of_quality_answers_that_question_alone(tmp_path: Path, make: Callable[[Path], Path], key: str) -> None:
    run = make_run(tmp_path / "run", prompts=6, images=1)
    judge = load_quality(str(make(tmp_path / "judge")), "evaluation.quality")
    scores = evaluate([run], run.scores, panel=Panel((judge,), (quality_metric(judge),)))
    (metric,) = scores.metrics
    assert metric.key == key
    assert metric.better == "higher"
    assert len(metric.arms["tuned"].images) == 18
    assert metric.differences[0].p is not None


def test_every_named_encoder_answers_with_its_own_name_and_the_first_decides(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=6, images=1)
    add_masks(run)
    folders = (make_dino(tmp_path / "dino-vits16"), make_clip(tmp_path / "clip-b32"))
    encoders = [load_encoder(str(folder), "evaluation.encoders") for folder in folders]
    asked = {metric.key for metric in standard_metrics(encoders)}
    scores = evaluate([run], run.scores, encoders=encoders)
    assert {m.key for m in scores.metrics} == asked - scores.skipped.keys()
    by_kind = {kind: [m.encoder for m in scores.metrics if m.kind == kind] for kind in {m.kind for m in scores.metrics}}
    for kind in ("subject_fidelity", "class_kept", "masked_fidelity"):
        assert by_kind[kind] == ["dino-vits16", "clip-b32"]
    assert by_kind["prompt_following"] == by_kind["class_mmd"] == ["clip-b32"]
    assert by_kind["other_drift"] == by_kind["class_kd"] == ["dino-vits16"]
    assert [m.key for m in scores.metrics if m.is_claimed] == [
        "subject_fidelity.dino-vits16", "prompt_following.clip-b32", "class_kept.dino-vits16",
        "other_drift.dino-vits16",
    ]  # fmt: skip
