from __future__ import annotations

from dataclasses import replace

from limner.metrics.ladder import Ladder, LadderMetric, Place, Rung, RungScore
from limner.report.axes import Axis, Measure, axes
from limner.report.costs import Figures
from tests.unit.report.test_verdict import interval, metric, scores

COST = Figures(
    arm="tuned", trained=797_184, base=859_520_964, file="adapter.safetensors", file_bytes=3.2e6, steps=400, step_s=0.2,
    train_s=80.0, class_s=20.0, train_memory_gib=3.0,
)  # fmt: skip


def measure(found: list[Axis], axis: str, title: str) -> Measure:
    return next(m for one in found if one.name == axis for m in one.measures if m.title == title)


def test_there_are_nine_in_their_order() -> None:
    names = [axis.name for axis in axes(scores(metric("subject_fidelity", 0.5, 0.7, "better")), [COST], {}, {})]
    assert names == ["efficiency", "training time", "resources", "compatibility", "personalisation", "complex tasks",
                     "power", "customisation", "image quality"]  # fmt: skip


def test_counts_are_counted_and_class_pictures_count() -> None:
    found = axes(scores(metric("subject_fidelity", 0.5, 0.7, "better")), [COST], {}, {})
    assert measure(found, "efficiency", "trained parameters").cells["tuned"].detail == "1,078× fewer than the base has"
    assert measure(found, "training time", "training, class pictures included").cells["tuned"].figure == "1 min 40 s"
    assert measure(found, "resources", "subjects in a gigabyte").cells["tuned"].figure == "312"


def test_how_far_it_gets_is_a_share_of_the_way_to_the_real_pictures() -> None:
    found = axes(scores(metric("subject_fidelity", 0.5, 0.7, "better")), [COST], {}, {})  # real pictures: 0.9
    way, energy = next(axis for axis in found if axis.name == "power").measures
    assert way.cells["tuned"].figure == "50 %"
    assert way.cells["tuned"].detail == "[37 %, 62 %]"
    assert "limner measure" in energy.why


def test_what_was_not_measured_says_why_and_is_not_left_out() -> None:
    given = scores(metric("subject_fidelity", 0.5, 0.7, "better"))
    found = axes(given.model_copy(update={"skipped": {"masked_fidelity.lite0": "no mask"}}), [COST], {}, {})
    assert measure(found, "personalisation", "likeness inside the masks").why == "no mask"
    assert "evaluation.strengths" in measure(found, "customisation", "likeness over its strengths").why


def test_the_least_is_marked_only_where_it_is_clear() -> None:
    near = replace(COST, arm="other", train_s=85.0)
    far = replace(COST, arm="other", train_s=500.0)
    given = scores(metric("subject_fidelity", 0.5, 0.7, "better"))
    title = "training, class pictures included"
    assert not measure(axes(given, [COST, near], {}, {}), "training time", title).cells["tuned"].badge
    assert measure(axes(given, [COST, far], {}, {}), "training time", title).cells["tuned"].badge == "least"


def test_strengths_are_told_from_the_base_on() -> None:
    scored = {s: RungScore(score=interval(v), images=()) for s, v in ((0.0, 0.4), (0.5, 0.5), (1.0, 0.7))}
    rungs = tuple(
        Rung(place=Place(strength=s, steps=8), scores={"subject_fidelity.lite0": one}) for s, one in scored.items()
    )
    asked = LadderMetric(key="subject_fidelity.lite0", title="Likeness", better="higher")
    ladder = Ladder(has_strength=True, prompts=("a photo",), metrics=(asked,), rungs=rungs)
    found = axes(scores(metric("subject_fidelity", 0.4, 0.7, "better")), [COST], {"tuned": ladder}, {})
    cell = measure(found, "customisation", "likeness over its strengths").cells["tuned"]
    assert (cell.figure, cell.detail) == ("0.40 → 0.70", "strength 0, 0.5, 1")
