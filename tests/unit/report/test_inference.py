"""The section on speed: there where a run was measured, with the numbers of its file, and never two sessions mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import UserError
from limner.evaluate.evaluate import evaluate
from limner.evaluate.inference import measurements
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.inference import (
    Inference,
    InferenceArm,
    InferenceDesign,
    LeftOut,
    Memory,
    MergeCheck,
    Pair,
    State,
    Taken,
)
from limner.report.inference import log_ticks
from limner.report.report import report
from limner.rundir import RunDir, write_json
from tests.unit.evaluate.synthetic import make_run
from tests.unit.report.test_report import Page

COSTS: dict[State, float] = {"base": 1.0, "unmerged": 1.25, "merged": 1.0}


def inference(runs: Sequence[str] = ("run",), session: str = "now") -> Inference:
    """Return what was measured of the first of `runs`: the base draws a step in 0.1 s, decodes in 0.2 s."""
    prefix = f"{runs[0]}, " if len(runs) > 1 else ""
    names: dict[State, str] = {state: state if state == "base" else f"{prefix}{state}" for state in COSTS}
    jitter = (0.99, 1.0, 1.01, 1.0, 0.995, 1.005)
    taken = {
        (names[state], Pair(batch, steps)): [
            Taken(x * (0.2 + 0.1 * steps * cost) * batch, 0.01, 0.1 * steps * cost, 0.19, 12.0 * cost) for x in jitter
        ]
        for state, cost in COSTS.items() for batch in (1, 4) for steps in (1, 4, 25)
    }  # fmt: skip
    memory = Memory(weights_bytes=60_000_000, working_bytes=14_000_000, process_peak_bytes=None,
                    process_anonymous_bytes=None)  # fmt: skip
    check = MergeCheck(largest=1e-6, share_of_effect=1e-6, agrees=True)
    return Inference(
        design=InferenceDesign(
            base="tiny", identity={}, runs=tuple(runs), session=session, usual_steps=20, sampling={"scheduler": "ddim"},
            precision="float32", device="cpu", hardware={}, versions={}, energy="the test's", budget_s=60, taken_s=59,
            stopped=False,
        ),
        arms=tuple(
            InferenceArm(name=names[state], state=state, run=None if state == "base" else runs[0], disk_bytes=3_000_000,
                         memory={1: memory, 4: memory}, merge=check if state == "merged" else None)
            for state in COSTS
        ),
        measurements=measurements(taken, list(names.values())),
        left_out=(LeftOut(steps=50, batch=4, why="did not fit into 60 s; seconds=90 would do"),),
    )  # fmt: skip


def write(run: RunDir, found: Inference) -> None:
    write_json(run.inference, found.model_dump(mode="json"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    folder = tmp_path_factory.mktemp("runs")
    made = [make_run(folder / name, prompts=6, images=1) for name in ("one", "two")]
    evaluate(made[:1], made[0].scores, encoders=[ColourHistogram()])
    evaluate(made, folder / "comparison.json", encoders=[ColourHistogram()])
    return made


def page(runs: list[RunDir], alone: bool) -> str:
    folder = runs[0].path.parent
    chosen, scores = (runs[:1], runs[0].scores) if alone else (runs, folder / "comparison.json")
    return report(chosen, scores, folder / "page.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")


def test_a_measured_run_says_what_its_adapter_costs(runs: list[RunDir]) -> None:
    runs[0].inference.unlink(missing_ok=True)
    assert 'id="speed"' not in page(runs, alone=True)
    write(runs[0], inference())
    text = page(runs, alone=True)
    assert Page(text).open == []
    assert "In 25 steps, one picture at a time, the base takes 2.7 s a picture on the CPU." in text
    assert "With the adapter beside its weights it takes 1.231 [1.231, 1.231] times as long: 23 % longer." in text
    assert "no difference was found, and one of 0.0 % could hide" in text
    assert text.count('<polyline class="smooth unmerged"') == 2, "a line in the panel of each batch"
    assert "15 J" in text
    assert "Not measured, 4 pictures at a time: 50 steps: did not fit into 60 s; seconds=90 would do." in text
    assert "agrees with unmerged" in text


def test_runs_stand_side_by_side_only_where_one_session_measured_them(runs: list[RunDir]) -> None:
    for run, names in zip(runs, (("one", "two"), ("two", "one")), strict=True):
        write(run, inference(names))
    text = page(runs, alone=False)
    assert Page(text).open == []
    assert text.count('<polyline class="smooth base"') == 2, "the base once in each panel"
    assert text.count('<polyline class="smooth merged"') == 4
    write(runs[1], inference(("two", "one"), session="another day"))
    assert 'id="speed"' not in page(runs, alone=False)
    runs[1].inference.unlink()
    assert 'id="speed"' not in page(runs, alone=False)


def test_a_file_of_another_schema_is_refused_with_the_way_to_a_new_one(runs: list[RunDir]) -> None:
    write_json(runs[0].inference, inference().model_dump(mode="json") | {"schema_version": 9})
    with pytest.raises(UserError, match="schema_version.* Measure again: limner measure"):
        page(runs, alone=True)


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=9))
def test_the_ticks_of_a_logarithmic_axis_enclose_its_values(values: list[float]) -> None:
    ticks = log_ticks(values)
    assert len(ticks) >= 2
    assert ticks[0] <= min(values) * (1 + 1e-9)
    assert ticks[-1] >= max(values) * (1 - 1e-9)
    assert all(1.9 < b / a < 2.6 for a, b in zip(ticks, ticks[1:], strict=False))
    assert math.isclose(ticks[0], float(f"{ticks[0]:.0e}"), rel_tol=1e-6)
