from __future__ import annotations

import pytest

from limner.metrics.scores import (
    ArmScore,
    Better,
    Design,
    Difference,
    Finding,
    Interval,
    Level,
    MetricScore,
    RunInfo,
    Scores,
)
from limner.report.verdict import verdict
from limner.report.which import headline, which_for_what, who_learned


def interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.05, high=mean + 0.05, n_images=24, n_units=8, unit="prompt")


def metric(
    kind: str,
    base: float,
    tuned: float,
    finding: Finding,
    *,
    encoder: str = "lite0",
    beyond: int | None = None,
    better: Better = "higher",
) -> MetricScore:
    difference = Difference(
        arm="tuned",
        to="base",
        score=interval(tuned - base),
        p=0.01,
        p_holm=0.03,
        sign_flip_p=0.02,
        conclusive=finding in ("better", "worse"),
        finding=finding,
        words="Not conclusive: only 4 images per side.",
    )
    return MetricScore(
        key=f"{kind}.{encoder}",
        kind=kind,
        encoder=encoder,
        title=kind,
        says="It says.",
        better=better,
        sets=("subject",),
        relative_to_base=kind.endswith("drift"),
        levels=(
            Level(name="within", title="real", value=0.9, pairs=10),
            Level(name="between", title="others", value=0.4, pairs=10),
            Level(name="another_seed", title="another seed", value=0.2, pairs=10),
        ),
        is_claimed=True,
        arms={
            "base": ArmScore(score=interval(base), beyond_limit=0, images=()),
            "tuned": ArmScore(score=interval(tuned), beyond_limit=beyond, images=()),
        },
        differences=(difference,),
    )


def scores(*metrics: MetricScore) -> Scores:
    design = Design(
        arms=("base", "tuned"),
        runs={"tuned": RunInfo(name="star-1", folder=".", settings={})},
        prompts={},
        images={},
        training_pictures=5,
        class_pictures=8,
        settings={},
        seed=0,
        draws=10,
    )
    return Scores(design=design, encoders=(), metrics=metrics, skipped={})


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        ("better", "It learned the subject."),
        ("worse", "It moved away from the subject."),
        ("no difference", "No difference found."),
        ("not conclusive", "Too few images to tell."),
    ],
)
def test_the_headline_says_what_was_found(finding: Finding, words: str) -> None:
    assert headline(scores(metric("subject_fidelity", 0.5, 0.8, finding))) == words


def test_a_page_without_likeness_claims_nothing() -> None:
    assert headline(scores()) == "Base against tuned."
    assert verdict(scores(), "tuned") == []


def test_a_gain_is_told_with_both_values_the_interval_and_the_levels() -> None:
    (text,) = verdict(scores(metric("subject_fidelity", 0.5, 0.8, "better")), "tuned")
    assert "looks more like the subject than the base: 0.80 against 0.50" in text
    assert "+0.30\N{NO-BREAK SPACE}[+0.25, +0.35]" in text
    assert text.endswith("Real pictures of it reach 0.90, others of the class 0.40.")


def test_a_class_that_turns_into_the_subject_is_told_with_its_size() -> None:
    found = scores(
        metric("class_kept", 0.4, 0.5, "worse", better="lower"), metric("other_drift", 0.0, 0.1, "not tested")
    )
    (text,) = verdict(found, "tuned")
    assert text.startswith("Others of the class moved towards the subject")
    assert "20% of the way to its real pictures" in text
    assert text.endswith("Images of other things moved by 0.10; another seed alone moves them by 0.20.")


def test_what_is_open_is_called_open() -> None:
    (text,) = verdict(scores(metric("class_kept", 0.4, 0.5, "not conclusive")), "tuned")
    assert text == "Whether others of the class stayed themselves is open. Not conclusive: only 4 images per side."


def test_a_gain_in_colour_alone_is_called_that() -> None:
    found = scores(
        metric("subject_fidelity", 0.5, 0.5, "no difference"),
        metric("subject_fidelity", 0.2, 0.6, "better", encoder="colour_histogram"),
    )
    assert verdict(found, "tuned")[-1].startswith("Only the colours came nearer to the subject")


def test_copies_are_counted_beside_the_base() -> None:
    (text,) = verdict(scores(metric("copying", 0.5, 0.9, "higher", beyond=3, better="neither")), "tuned")
    assert text.startswith("Look for copies: 3 of 24 images")
    assert text.endswith("(base: 0).")
    assert verdict(scores(metric("copying", 0.5, 0.9, "higher", beyond=0, better="neither")), "tuned") == []


Found = tuple[str, str, float, Finding]


def three_arms(*found: Found, kind: str = "subject_fidelity") -> Scores:
    """Make scores of a base and the arms a, b and c with the given differences: arm, to, mean, finding."""
    differences = tuple(
        Difference(
            arm=arm, to=to, score=interval(mean), p=0.01, p_holm=0.03, sign_flip_p=0.02,
            conclusive=finding in ("better", "worse"), finding=finding, words="",
        )
        for arm, to, mean, finding in found
    )  # fmt: skip
    made = scores(metric(kind, 0.5, 0.8, "better").model_copy(update={"differences": differences}))
    return made.model_copy(update={"design": made.design.model_copy(update={"arms": ("base", "a", "b", "c")})})


def to_base(*findings: Finding) -> tuple[Found, ...]:
    return tuple((arm, "base", 0.2, finding) for arm, finding in zip("abc", findings, strict=True))


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (("better", "better", "better"), "All three learned the subject."),
        (("better", "no difference", "better"), "Two of three learned the subject."),
        (("better", "not conclusive", "not conclusive"), "One of three learned the subject."),
        (("no difference", "worse", "no difference"), "None learned the subject."),
        (("no difference", "not conclusive", "no difference"), "Nothing conclusive about likeness."),
        (("no difference", "no difference", "no difference"), "No difference found."),
    ],
)
def test_the_headline_of_several_counts_those_that_learned(findings: tuple[Finding, ...], words: str) -> None:
    assert headline(three_arms(*to_base(*findings))) == words


def test_who_learned_is_named_where_arms_differ() -> None:
    assert who_learned(three_arms(*to_base("better", "no difference", "better"))) == "Learned by a and c."
    some = three_arms(*to_base("better", "not conclusive", "not conclusive"))
    assert who_learned(some) == "Learned by a; of b and c it is open."
    assert who_learned(three_arms(*to_base("better", "better", "better"))) == ""
    assert who_learned(three_arms(*to_base("worse", "not conclusive", "worse"))) == ""


def test_only_conclusive_differences_between_arms_are_claimed() -> None:
    pairs: tuple[Found, ...] = (("b", "a", 0.1, "better"), ("c", "a", 0.3, "not conclusive"), ("c", "b", -0.2, "worse"))
    (sentence,) = which_for_what(three_arms(*to_base("better", "better", "better"), *pairs))
    size = "\N{NO-BREAK SPACE}["
    assert sentence == (
        f"b looks more like the subject than a, by 0.10{size}0.05, 0.15]; and than c, by 0.20{size}0.15, 0.25]."
    )


def test_the_winner_of_a_question_where_less_is_better_has_the_lower_score() -> None:
    pairs: tuple[Found, ...] = (("b", "a", -0.1, "better"), ("c", "a", 0.1, "worse"), ("c", "b", 0.0, "no difference"))
    found = which_for_what(three_arms(*to_base("better", "better", "better"), *pairs, kind="class_kept"))
    assert [sentence.split(", by 0.10")[0] for sentence in found] == [
        "b keeps others of the class further from the subject than a",
        "a keeps others of the class further from the subject than c",
    ]


def test_what_is_the_same_and_what_is_open_are_told_apart() -> None:
    same = three_arms(*to_base("better", "better", "better"), ("b", "a", 0.0, "no difference"))
    unclear = three_arms(*to_base("better", "better", "better"), ("b", "a", 0.0, "not conclusive"), kind="other_drift")
    both = same.model_copy(update={"metrics": (*same.metrics, *unclear.metrics)})
    assert which_for_what(both) == [
        "No difference between them was found in likeness to the subject.",
        "Nothing can be claimed about keeping everything else.",
    ]


@pytest.mark.parametrize(
    ("masked", "is_said"), [("no difference", True), ("worse", True), ("better", False), ("not conclusive", False)]
)
def test_a_gain_outside_the_masks_alone_is_called_that(masked: Finding, is_said: bool) -> None:
    found = scores(metric("subject_fidelity", 0.5, 0.7, "better"), metric("masked_fidelity", 0.5, 0.5, masked))
    said = any("look for copied backgrounds" in text for text in verdict(found, "tuned"))
    assert said == is_said


def test_a_gain_in_colour_beside_an_open_answer_is_no_warning() -> None:
    found = scores(
        metric("subject_fidelity", 0.5, 0.6, "not conclusive"),
        metric("subject_fidelity", 0.2, 0.6, "better", encoder="colour_histogram"),
    )
    assert not any("Only the colours" in text for text in verdict(found, "tuned"))
