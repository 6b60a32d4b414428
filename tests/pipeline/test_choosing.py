"""Validations during training: they change nothing in it, and the step that they speak for becomes the result."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import limner
from limner.errors import Interrupted, UserError
from limner.families.source import ASSETS
from limner.metrics.course import Course
from limner.recipe import load_recipe, shipped_recipes
from limner.run import plan
from limner.rundir import RunDir, read_json
from limner.validating import read_course
from limner.watch import Watch

PICTURES = ASSETS / "demo" / "critter"
KINDS = ["subject_fidelity", "prompt_following", "class_drift", "copying"]


class Told(Watch):
    """Remembers what was said, and stops the run when so many steps of its training are done."""

    def __init__(self, stop_at: int = -1) -> None:
        self.said: list[str] = []
        self.stop_at, self.name = stop_at, ""

    def begin(self, phase: str) -> None:
        self.name = phase

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self.name == "train" and done == self.stop_at:
            signal.raise_signal(signal.SIGINT)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def settings(random_base: Path) -> dict[str, Any]:
    return {
        "base": str(random_base), "steps": 6, "prior.enabled": False, "batch": 2, "checkpoint.every_steps": 0,
        "adapter.targets": "attention", "adapter.rank": 4, "adapter.save_precision": "float32",
        "learning_rate": 0.02, "optimizer.schedule": "constant", "generation.num_inference_steps": 2,
        "evaluation.encoders": ["colour_histogram"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def validating() -> dict[str, Any]:
    return {"validation.every_steps": 2, "validation.images_per_prompt": 1}


@pytest.fixture(scope="module")
def plain(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train without any validation."""
    return train(settings, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def chosen_for(
    settings: dict[str, Any], validating: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return settings of a run whose knee is known: likeness is measured against what it draws itself at step 4."""
    run = train({**settings, **validating}, tmp_path_factory.mktemp("first") / "run")
    held_out = tmp_path_factory.mktemp("held-out")
    for picture in (run.validation / "step-000004").glob("subject*.png"):
        shutil.copy(picture, held_out)
    return {**validating, "checkpoint.choose": "evidence", "checkpoint.keep": 1, "evaluation.pictures": str(held_out)}


@pytest.fixture(scope="module")
def judged(settings: dict[str, Any], chosen_for: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train({**settings, **chosen_for}, tmp_path_factory.mktemp("judged") / "run")


def train(settings: dict[str, Any], run: Path, watch: Watch | None = None) -> RunDir:
    return limner.train(PICTURES, recipe="demo", run=run, settings=settings, watch=watch)


def tensors(run: RunDir) -> bytes:
    """Return the bytes of an adapter's tensors, without its header, which has the recipe."""
    data = run.adapter.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def course_of(run: RunDir) -> Course:
    course = read_course(run)
    assert course
    return course


def losses(run: RunDir) -> list[float]:
    return [row["loss"] for row in run.read_log("step")]


def test_the_step_that_the_evidence_speaks_for_becomes_the_result(
    settings: dict[str, Any], plain: RunDir, judged: RunDir, tmp_path: Path
) -> None:
    course = course_of(judged)
    assert course.steps == (0, 2, 4, 6)
    assert course.knee
    assert (course.knee.step, course.knee.is_conclusive, course.knee.waited) == (4, True, 1), course.knee.words
    assert [row["step"] for row in judged.read_log("judged")] == [0, 2, 4, 6]
    chosen = read_json(judged.provenance)["chosen"]
    seconds = {row["step"]: row["seconds"] for row in judged.read_log("step")}
    assert chosen == {"choose": "evidence", "step": 4, "trained_steps": 6, "is_early": False, "why": course.knee.words,
                      "seconds": round(sum(seconds[step] for step in range(1, 5)), 3)}  # fmt: skip
    assert sorted(path.name for path in judged.checkpoints.iterdir()) == ["step-000004", "step-000006"]
    assert tensors(judged) == tensors(train({**settings, "steps": 4}, tmp_path / "shorter"))


def test_validations_change_nothing_in_the_training(plain: RunDir, judged: RunDir) -> None:
    assert losses(judged) == losses(plain)
    state = "step-000006/state.safetensors"
    assert (judged.checkpoints / state).read_bytes() == (plain.checkpoints / state).read_bytes()


def test_a_run_that_is_stopped_at_a_validation_chooses_alike(
    settings: dict[str, Any], chosen_for: dict[str, Any], judged: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(Interrupted, match="Stopped at step 4 of 6"):
        train({**settings, **chosen_for}, run.path, Told(stop_at=4))
    assert course_of(run).steps == (0, 2)
    limner.resume(run.path)
    assert course_of(run) == course_of(judged)
    assert run.adapter.read_bytes() == judged.adapter.read_bytes()
    for step in (0, 2, 4, 6):
        for picture in (judged.validation / f"step-{step:06d}").glob("*.png"):
            assert picture.read_bytes() == (run.validation / picture.parent.name / picture.name).read_bytes()


def test_a_finished_run_takes_the_last_step_when_that_is_asked(judged: RunDir, plain: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(judged.path, tmp_path / "run"))
    watch = Told()
    limner.resume(run.path, settings={"checkpoint.choose": "last"}, watch=watch)
    assert tensors(run) == tensors(plain)
    assert any(line.startswith("result: step 6, the last one. By the evidence: From step 4 on") for line in watch.said)
    shutil.rmtree(run.checkpoints / "step-000004")
    with pytest.raises(UserError, match=r"the checkpoint of step 4, the best one, is not there.*choose=last"):
        limner.resume(run.path, settings={"checkpoint.choose": "evidence"})


def test_a_run_ends_when_only_forgetting_goes_on_and_goes_on_when_that_is_asked(
    settings: dict[str, Any], chosen_for: dict[str, Any], judged: RunDir, tmp_path: Path
) -> None:
    """The wild learning rate moves the class, by step 8 beyond doubt, and after step 4 nothing is gained."""
    longer = {**settings, **chosen_for, "steps": 10, "validation.patience": 1}
    watch = Told()
    run = train(longer, tmp_path / "run", watch)
    knee = course_of(run).knee
    assert knee
    assert knee.is_forgetting, knee.words
    assert course_of(run).steps == (0, 2, 4, 6, 8)
    chosen = read_json(run.provenance)["chosen"]
    assert (chosen["step"], chosen["trained_steps"], chosen["is_early"]) == (4, 8, True)
    assert read_json(run.provenance)["trained"]["steps"] == 8
    assert any("ends at step 8 of 10, because of validation.patience" in line for line in watch.said)
    assert tensors(run) == tensors(judged)
    with pytest.raises(UserError, match=r"8 of 10 steps, ended by validation.patience=1\..*validation.patience=0"):
        limner.resume(run.path)
    assert len(losses(limner.resume(run.path, settings={"validation.patience": 0}))) == 10
    assert course_of(run).steps == (0, 2, 4, 6, 8, 10)


@pytest.mark.parametrize(
    "more",
    [
        {"adapter.kind": "full"},
        {"adapter.kind": "pivotal", "ema.decay": 0.5, "accumulate": 2, "unload": True},
    ],
    ids=lambda more: more["adapter.kind"],
)
def test_every_adapter_is_validated_and_its_base_is_the_base(
    random_base: Path, validating: dict[str, Any], judged: RunDir, more: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit the same training as without; what the adapter leaves of the base when it is off is all of it."""
    own = {"base": str(random_base), "steps": 2, "prior.enabled": False, "batch": 2, "learning_rate": 1e-3,
           "generation.num_inference_steps": 2, "evaluation.encoders": ["colour_histogram"], **more}  # fmt: skip
    once = train(own, tmp_path / "once")
    run = train({**own, **validating, "validation.every_steps": 1}, tmp_path / "run")
    assert course_of(run).steps == (0, 1, 2)
    assert losses(run) == losses(once)
    state = "step-000002/state.safetensors"
    assert (run.checkpoints / state).read_bytes() == (once.checkpoints / state).read_bytes()
    for picture in (run.validation / "step-000000").glob("*.png"):
        assert picture.read_bytes() == (judged.validation / "step-000000" / picture.name).read_bytes()


@pytest.mark.parametrize("recipe", [None, *shipped_recipes()])
def test_nothing_is_judged_that_is_reported(recipe: str | None) -> None:
    """Neither prompts nor seeds, which follow from the prompts, are those of the comparison."""
    made = load_recipe(recipe, {})
    seeds = [{request.seed for request in one.requests("sks", "dog")} for one in (made.validation, made.evaluation)]
    assert not seeds[0] & seeds[1]


def test_a_plan_counts_them(settings: dict[str, Any], validating: dict[str, Any]) -> None:
    told = plan(PICTURES, recipe="demo", settings={**settings, **validating})
    phases = {row["phase"]: row for row in told.facts["phases"]}
    assert phases["validation"]["seconds"] > 0
    assert phases["validation"]["memory_gib"] > phases["load"]["memory_gib"]


def test_all_is_told_for_the_report(judged: RunDir) -> None:
    """The embedded base's own judges answer all four questions; one that reads no text leaves out the prompts."""
    assert [curve.kind for curve in course_of(judged).curves] == [k for k in KINDS if k != "prompt_following"]
