"""Rounds in turn: what fits the time, who draws how often, what a stop leaves; and twins of a base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.energy import Meter
from limner.families.family import Family
from limner.families.load import load
from limner.generate.clock import Clock
from limner.generate.draw import Sampling, draw_batch, requests_for
from limner.generate.measure import LEAST_ROUNDS, MOST_ROUNDS, Measuring, Painter, Session, fitting
from limner.metrics.inference import Pair, Taken

REQUESTS = requests_for("subject", [("a red robot", "a red robot")], range(3))


def silent(_done: int, _total: int) -> None:
    """Be told and say nothing."""


def session(family: Family, *, meter: Meter | None = None, **asked: object) -> Session:
    painters = [Painter(name, one, REQUESTS, 10) for name, one in (("base", family), ("unmerged", family.twin()))]
    return Session(painters, Sampling(), 64, Measuring.model_validate(asked), meter=meter)


@given(
    st.dictionaries(st.builds(Pair, st.integers(1, 9), st.integers(1, 50)), st.floats(1e-3, 100), min_size=1),
    st.floats(1, 1000),
)
def test_what_fits_the_time_is_the_cheapest_and_the_rest_is_said(costs: dict[Pair, float], seconds: float) -> None:
    rounds, left_out = fitting(costs, seconds, 0.0)
    assert rounds.keys() | left_out.keys() == costs.keys()
    assert not rounds.keys() & left_out.keys()
    assert max(costs[pair] for pair in rounds) <= min((costs[pair] for pair in left_out), default=float("inf"))
    assert all(LEAST_ROUNDS <= count <= MOST_ROUNDS for count in rounds.values())
    if len(rounds) > 1:
        assert sum(count * costs[pair] for pair, count in rounds.items()) <= seconds * (1 + 1e-9)
    for pair, why in left_out.items():
        enough = float(why.partition("seconds=")[2].split()[0])
        assert pair in fitting(costs, enough, 0.0)[0], "the seconds that are said to be enough are"


def test_all_draw_in_every_round_and_no_time_is_left_out(family: Family) -> None:
    joules = iter(map(float, range(1000)))
    measured = session(
        family, seconds=1.0, inference_steps=[2, 1], batches=[2, 1], meter=Meter("test", lambda: next(joules))
    )
    measured.warm_up(silent)
    seen: list[int] = []
    measured.run(lambda done, total: seen.append(done))
    assert seen == list(range(1, len(seen) + 1))
    assert Pair(1, 1) in measured.rounds
    assert measured.rounds.keys() | measured.left_out.keys() == {Pair(b, s) for b in (1, 2) for s in (1, 2)}
    for pair in measured.rounds.keys() - measured.left_out.keys():
        rows = [measured.taken[name, pair] for name in ("base", "unmerged")]
        assert len(rows[0]) == len(rows[1]) >= 1
        for one in (*rows[0], *rows[1]):
            assert one.text > 0 < one.denoise
            assert one.decode > 0
            assert one.text + one.denoise + one.decode <= one.seconds
            assert one.joules == 1
    assert measured.memory["base"][1].weights_bytes == 10


def test_what_does_not_fit_is_left_out_and_the_cheapest_is_measured(family: Family) -> None:
    measured = session(family, seconds=1e-3, inference_steps=[1, 1000], batches=[1, 500])
    measured.warm_up(silent)
    measured.run(silent)
    assert {pair for _, pair in measured.taken} == {Pair(1, 1)}
    assert measured.left_out.keys() == {Pair(1, 1000), Pair(500, 1), Pair(500, 1000)}
    assert 500 not in measured.memory["base"], "what cannot fit is not even tried"


def test_a_batch_that_memory_does_not_hold_is_left_out(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = session(family, seconds=5.0, inference_steps=1, batches=[1, 2, 3])
    draw = measured._draw  # pyright: ignore[reportPrivateUsage]

    def full(painter: Painter, pair: Pair) -> object:
        if pair.batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(painter, pair)

    monkeypatch.setattr(measured, "_draw", full)
    measured.warm_up(silent)
    assert measured.rounds.keys() == {Pair(1, 1)}
    assert measured.left_out == dict.fromkeys([Pair(2, 1), Pair(3, 1)], "did not fit into memory")


def test_a_disturbed_draw_does_not_leave_the_smaller_batch_out(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = session(family, seconds=0.5, inference_steps=[1, 2], batches=[1, 2])
    monkeypatch.setattr(measured, "_draw", lambda _, pair: Taken(0.04 / pair.batch, 0.0, 0.02 / pair.batch, 0.0, None))
    measured.warm_up(silent)
    assert next(iter(measured.rounds)) == Pair(1, 1)
    assert {pair.batch for pair in measured.rounds} == {1}


def test_a_stop_leaves_what_was_measured(family: Family) -> None:
    measured = session(family, seconds=5.0, inference_steps=1, batches=1)
    measured.warm_up(silent)

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured.run(stop)
    assert [len(rows) for rows in measured.taken.values()] == [3, 3]


def test_steps_that_two_models_cannot_share_are_left_out(random_xl: Path, random_refiner: Path) -> None:
    family, refiner = (load(str(place), dtype=torch.float32, device="cpu") for place in (random_xl, random_refiner))
    family.refiner = refiner
    measured = session(family, seconds=0.1, inference_steps=[1, 5], batches=1)
    measured.warm_up(silent)
    assert measured.rounds.keys() == {Pair(1, 5)}
    assert measured.left_out == {Pair(1, 1): "of 1 step the base takes none"}


def test_a_twin_shares_every_weight_and_nothing_else(family: Family) -> None:
    twin = family.twin()
    assert [one.data_ptr() for one in twin.weights()] == [one.data_ptr() for one in family.weights()]
    called: list[str] = []
    twin.unet.register_forward_hook(lambda *_: called.append("twin"))
    twin.set_schedule(zero_terminal_snr=True)
    assert twin.scheduler_config != family.scheduler_config
    clock = Clock(family.device)
    drawn = [draw_batch(one, REQUESTS[:1], Sampling(num_inference_steps=1), 64, lambda step: None, clock)
             for one in (family, family.twin())]  # fmt: skip
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert called == []
    assert all(seconds > 0 for seconds in clock.seconds.values())
