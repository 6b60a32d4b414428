"""Several runs side by side: what is planted is found, what is equal is not told apart, the unlike is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.errors import UserError
from limner.evaluate.claims import corrected
from limner.evaluate.evaluate import evaluate
from limner.evaluate.names import arm_names, settings_apart
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.scores import Scores
from limner.rundir import RunDir, read_json, write_json
from tests.unit.evaluate.synthetic import make_arm, make_run


def compare(runs: list[RunDir], out: Path) -> Scores:
    return evaluate(runs, out, encoders=[ColourHistogram()])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunDir], Path, Scores]:
    """Two runs that learned the star, to the same images, and one that learned nothing."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "a", prompts=8, images=2, prior=False),
        make_run(folder / "b", prompts=8, images=2, prior=True),
        make_run(folder / "c", prompts=8, images=2, kind="full", tuned_like_base=True),
    ]
    out = folder / "pages" / "comparison.json"
    return runs, out, compare(runs, out)


def test_the_arms_are_the_base_and_each_runs_method(three: tuple[list[RunDir], Path, Scores]) -> None:
    design = three[2].design
    assert design.arms == ("base", "lora", "dreambooth-lora", "dreambooth")
    assert [info.name for info in design.runs.values()] == ["a", "b", "c"]
    assert design.runs["lora"].settings == {"adapter.kind": "lora", "prior.enabled": False}
    assert design.runs["dreambooth"].settings == {"adapter.kind": "full", "prior.enabled": True}


def test_every_arm_is_compared_to_the_base_and_to_every_other(three: tuple[list[RunDir], Path, Scores]) -> None:
    for metric in three[2].metrics:
        assert [(d.arm, d.to) for d in metric.differences] == [
            ("lora", "base"),
            ("dreambooth-lora", "base"),
            ("dreambooth", "base"),
            ("dreambooth-lora", "lora"),
            ("dreambooth", "lora"),
            ("dreambooth", "dreambooth-lora"),
        ]


def test_arms_of_equal_images_differ_by_exactly_nothing(three: tuple[list[RunDir], Path, Scores]) -> None:
    for metric in three[2].metrics:
        same = metric.difference("dreambooth-lora", "lora")
        assert (same.score.mean, same.score.low, same.score.high, same.p) == (0, 0, 0, 1)
        assert same.finding == "no difference"


def test_a_planted_difference_between_arms_is_found(three: tuple[list[RunDir], Path, Scores]) -> None:
    metric = three[2].find("subject_fidelity")
    assert metric is not None
    assert metric.difference("lora", "base").finding == "better"
    assert metric.difference("dreambooth", "base").finding == "no difference"
    planted = metric.difference("dreambooth", "lora")
    assert planted.finding == "worse", planted.words
    assert planted.p_holm is not None
    assert planted.p is not None
    assert planted.p <= planted.p_holm < 0.05
    assert planted.score.mean == pytest.approx(-metric.difference("lora", "base").score.mean)


def test_change_of_everything_else_is_tested_between_arms(three: tuple[list[RunDir], Path, Scores]) -> None:
    metric = three[2].find("other_drift")
    assert metric is not None
    assert metric.difference("lora", "base").finding == "not tested"
    assert metric.difference("dreambooth", "base").score.mean == 0
    assert metric.difference("dreambooth", "lora").finding == "better"


def test_every_value_leads_to_its_picture_from_where_the_file_lies(three: tuple[list[RunDir], Path, Scores]) -> None:
    runs, out, scores = three
    for metric in scores.metrics:
        for arm, score in metric.arms.items():
            folder = runs[0].path if arm == "base" else out.parent / scores.design.runs[arm].folder
            assert all((folder / image.file).is_file() for image in score.images)
    assert Scores.model_validate(read_json(out)) == scores


def test_an_arm_scores_the_same_alone_and_in_company(three: tuple[list[RunDir], Path, Scores]) -> None:
    runs, _, scores = three
    alone = compare([runs[1]], runs[1].scores)
    assert alone.design.arms == ("base", "tuned")
    assert alone.design.runs["tuned"].folder == "."
    for one, among in zip(alone.metrics, scores.metrics, strict=True):
        assert one.arms["tuned"] == among.arms["dreambooth-lora"]
        assert one.difference("tuned", "base").score == among.difference("dreambooth-lora", "base").score


def test_more_claims_are_corrected_more(three: tuple[list[RunDir], Path, Scores]) -> None:
    metric = three[2].find("class_kept")
    assert metric is not None
    alone = compare([three[0][0]], three[0][0].scores).find("class_kept")
    assert alone is not None
    here, there = metric.difference("lora", "base"), alone.difference("tuned", "base")
    assert here.p == there.p
    assert here.p_holm is not None
    assert there.p_holm is not None
    assert here.p_holm >= there.p_holm


def test_only_claimed_questions_are_corrected(three: tuple[list[RunDir], Path, Scores]) -> None:
    scores = three[2]
    assert {m.kind for m in scores.metrics if m.is_claimed} == {"subject_fidelity", "class_kept", "other_drift"}
    for metric in scores.metrics:
        for difference in metric.differences:
            assert (difference.p_holm is not None) == (metric.is_claimed and difference.p is not None)


def test_a_claim_that_falls_is_taken_back(three: tuple[list[RunDir], Path, Scores]) -> None:
    metric = three[2].find("subject_fidelity")
    assert metric is not None
    weak = metric.difference("lora", "base").model_copy(update={"p": 0.03, "conclusive": True, "finding": "better"})
    metrics = [metric.model_copy(update={"key": f"subject_fidelity.{i}", "differences": (weak,)}) for i in range(2)]
    for once in corrected(metrics):
        (fallen,) = once.differences
        assert fallen.p_holm == pytest.approx(0.06)
        assert not fallen.conclusive
        assert fallen.finding == "not conclusive"
        assert "one of 2 comparisons may do so by chance (p = 0.06 after Holm's correction)" in fallen.words
    (alone,) = corrected(metrics[:1])
    assert alone.differences[0].conclusive


def test_runs_of_different_subjects_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, prompts=1, images=1, subject=name) for name in ("star", "moon")]
    with pytest.raises(UserError, match="refused: .*star and .*moon learned from different pictures. Compare runs of"):
        compare(runs, tmp_path / "comparison.json")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_inference_steps": 30}, "base used 25 steps, the base of dreambooth 30"),
        ({"base": "sd", "identity": {"unet": "f" * 16}}, "base is tiny, the base of dreambooth was made with sd"),
        ({"images": 1}, "the base of dreambooth lacks an image"),
    ],
)
def test_runs_made_differently_are_not_compared(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    runs = [make_run(tmp_path / kind, prompts=2, images=2, kind=kind, prior=False) for kind in ("lora", "full")]
    made = {"prompts": 2, "images": 2, **changed}
    for side in ("base", "tuned"):
        make_arm(runs[1], side, tuned=side == "tuned", **made)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=f"Comparison refused: {words}"):
        compare(runs, tmp_path / "comparison.json")


def test_runs_with_other_prompts_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / kind, prompts=2, images=1, kind=kind, prior=False) for kind in ("lora", "full")]
    for side in ("base", "tuned"):
        path = runs[1].images / side / "manifest.json"
        manifest = read_json(path)
        manifest["images"][0]["plain_prompt"] = "a photo of a critter at night"
        write_json(path, manifest)
    with pytest.raises(UserError, match='base made .*, the base of dreambooth "a photo of a critter at night"'):
        compare(runs, tmp_path / "comparison.json")


def test_a_run_cannot_be_compared_with_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=1, images=1)
    with pytest.raises(UserError, match="run: is named twice. Name each run once."):
        compare([run, RunDir(tmp_path / "run" / ".." / "run")], tmp_path / "comparison.json")


def recipe(kind: str = "lora", *, prior: bool = False, **settings: object) -> dict[str, object]:
    return {"adapter": {"kind": kind}, "prior": {"enabled": prior}, **settings}


@pytest.mark.parametrize(
    ("recipes", "names"),
    [
        ([recipe(), recipe("full"), recipe(prior=True)], ["lora", "dreambooth", "dreambooth-lora"]),
        ([recipe(steps=40), recipe(steps=80), recipe("full")], ["lora steps 40", "lora steps 80", "dreambooth"]),
        ([recipe(learning_rate=1e-4), recipe()], ["lora-1", "lora-2"]),
        (
            [recipe(generation={"refiner": ""}), recipe(generation={"refiner": "owner/xl"})],
            ["lora without refiner", "lora refiner xl"],
        ),
        ([recipe(steps=40, seed=1), recipe(steps=80, seed=2)], ["lora-1", "lora-2"]),
        ([recipe(), recipe(), recipe()], ["lora-1", "lora-2", "lora-3"]),
        ([recipe(seed=1), recipe(seed=1), recipe(seed=2)], ["lora-1", "lora-2", "lora-3"]),
        ([recipe("textual_inversion"), recipe("pivotal", prior=True)], ["textual-inversion", "pivotal"]),
        ([{"adapter": {"kind": "peft", "method": "dora"}}, recipe()], ["dora", "lora"]),
    ],
)
def test_arms_are_named_by_method_and_by_what_sets_them_apart(
    recipes: list[dict[str, object]], names: list[str]
) -> None:
    assert arm_names(recipes) == names


def test_settings_that_change_nothing_learned_do_not_set_runs_apart() -> None:
    one, two = recipe(preview={"every_steps": 1}, seed=1), recipe(checkpoint={"keep": 2}, seed=2)
    assert settings_apart([one, two]) == [{"seed": 1}, {"seed": 2}]


def test_a_prior_of_no_weight_is_none() -> None:
    assert arm_names([{"adapter": {"kind": "lora"}, "prior": {"enabled": True, "weight": 0.0}}]) == ["lora"]
