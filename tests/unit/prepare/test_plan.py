"""One length is given, the rest follows from the batches that are really drawn."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import UserError
from limner.pictures.fit import fit_to
from limner.pictures.picture import Picture
from limner.prepare.check import Checked, Example
from limner.prepare.plan import batch_notes, plan_length


def checked(shapes: list[int], repeats: int = 1) -> Checked:
    """Return a set whose pictures lie in buckets of the given widths."""
    examples = [
        Example(Picture(f"{i}", Path(f"{i}.png")), "", (w, 64), "", fit_to((w, 64), (w, 64)), repeats=repeats)
        for i, w in enumerate(shapes)
    ]
    return Checked(tuple(examples), (), (), 64)


@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 16),
    repeats=st.integers(1, 4),
    exposures=st.integers(1, 60),
    two_buckets=st.booleans(),
)
def test_planned_steps_are_those_that_show_every_picture_so_often(n, batch, repeats, exposures, two_buckets):
    data = checked([64 + 16 * (i % 2 if two_buckets else 0) for i in range(n)], repeats)
    plan = plan_length(data, batch=batch, exposures=exposures * repeats)
    order = data.order(batch)
    seen = [0] * n
    for step in range(plan.steps):
        for index in order.rows(step, 0)[0]:
            seen[index] += 1
    assert min(seen) >= exposures * repeats
    before_last = sum(seen) - len(order.rows(plan.steps - 1, 0)[0])
    assert before_last < n * exposures * repeats
    assert plan_length(data, batch=batch, epochs=exposures).steps == plan.steps
    again = plan_length(data, batch=batch, steps=plan.steps)
    assert again.epochs == plan.epochs >= exposures


def test_accumulated_batches_count_as_one_step():
    data = checked([64] * 10)
    plan = plan_length(data, batch=2, accumulate=3, exposures=50)
    assert plan == plan_length(data, batch=6, exposures=50)
    assert (
        plan_length(checked([64, 80] * 5), batch=2, accumulate=3, epochs=3).steps == 6
    )  # 6 batches of 10 / 6 an epoch


def test_the_line_tells_all():
    plan = plan_length(checked([64] * 28), batch=4, exposures=50)
    assert plan.steps == 350
    assert plan.line == "28 pictures × 50 exposures / batch 4 = 350 steps (50 epochs)"
    plan = plan_length(checked([64] * 28), batch=4, steps=350, num_prior_examples=200)
    assert plan.line.endswith("350 steps (50 epochs), and as many rows of 200 class pictures × 7 exposures")


@pytest.mark.parametrize(
    ("given_lengths", "message"),
    [
        ({}, r"exactly one of steps, epochs and exposures \(got none\)"),
        ({"steps": 1600, "epochs": 200}, r"\(got steps=1600 and epochs=200\)"),
        ({"steps": 0}, "steps=0 trains nothing"),
        ({"epochs": -1.5}, "epochs=-1.5 trains nothing"),
    ],
)
def test_exactly_one_length(given_lengths, message):
    with pytest.raises(UserError, match=message):
        plan_length(checked([64]), batch=1, **given_lengths)


def test_small_buckets_are_named():
    assert batch_notes(checked([64] * 5 + [80]), 4) == [
        "Bucket 80×64 has 1 picture at batch 4: they are seen as a batch of 1"
    ]
    assert batch_notes(checked([64]), 4) == []
