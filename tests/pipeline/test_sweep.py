"""The sweep: variants train in one batch, are judged, one is taken; the same command goes on from wherever it was."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limner
from limner.errors import Guarded, Interrupted, UserError
from limner.families.source import ASSETS
from limner.metrics.sweep import Sweep
from limner.rundir import RunDir, read_json
from limner.sweeping import Found, split_axes
from limner.validating import SharedEncoders
from limner.watch import Watch
from tests.pipeline.apart import apart
from tests.pipeline.conftest import Result
from tests.pipeline.lines import Lines

PICTURES = ASSETS / "demo" / "critter"
AXES = {"adapter.rank": [2, 4], "learning_rate": [1e-3, 0.1]}
COLOURS = ("red", "blue", "green", "white", "black", "grey")
WILD = 1e-3
"""How far such a rate carries the last bits of a sum; test_variants holds the equality itself to 1e-5."""
BEST = "rank=2,learning_rate=0.1"


class Stopped(Lines):
    """Sends this process Ctrl-C when the board shows something."""

    def __init__(self, shown: str) -> None:
        super().__init__()
        self.shown = shown

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self.shown in note:
            self.shown = "never"
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def plain(random_base: Path) -> dict[str, Any]:
    return {
        "base": str(random_base), "steps": 4, "prior.enabled": False, "batch": 2, "checkpoint.every_steps": 2,
        "adapter.targets": "attention", "adapter.save_precision": "float32", "optimizer.schedule": "constant",
        "generation.num_inference_steps": 2, "evaluation.encoders": ["colour_histogram"], "pictures.workers": 0,
        "validation.images_per_prompt": 1, "validation.class_prompts": ["a {class_noun}", "a red {class_noun}"],
        "validation.prompts": [f"a {{subject}} on a {colour} rug" for colour in COLOURS],
    }  # fmt: skip


@pytest.fixture(scope="module")
def best(plain: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train the variant that is to be taken by itself."""
    own = {**plain, "adapter.rank": 2, "learning_rate": 0.1, "validation.every_steps": 4}
    return limner.train(PICTURES, recipe="demo", settings=own, run=tmp_path_factory.mktemp("best") / "run")


@pytest.fixture(scope="module")
def settings(plain: dict[str, Any], best: RunDir, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings whose likeness is measured against what that variant draws itself."""
    held_out = tmp_path_factory.mktemp("held-out")
    for picture in (best.validation / "step-000004").glob("subject*.png"):
        shutil.copy(picture, held_out)
    return {**plain, "evaluation.pictures": str(held_out)}


@pytest.fixture(scope="module")
def made(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Lines]:
    watch = Lines()
    return sweep(settings, tmp_path_factory.mktemp("made") / "sweep", watch), watch


def sweep(settings: dict[str, Any], run: Path, watch: Watch | None = None, axes: dict[str, Any] = AXES) -> Found:
    return limner.sweep(PICTURES, axes, recipe="demo", settings=settings, run=run, watch=watch)


def test_the_variant_that_the_evidence_is_for_is_taken(made: tuple[Found, Lines], best: RunDir) -> None:
    found, watch = made
    assert found.sweep.taken == BEST, found.sweep.words
    assert found.run
    assert found.run.path == found.path / "runs" / BEST
    assert apart(found.run, best) < WILD
    assert found.adapter == found.path / "taken" / "adapter.safetensors"
    assert found.adapter.read_bytes() == found.run.adapter.read_bytes()
    assert Sweep.model_validate(read_json(found.path / "sweep.json")) == found.sweep
    assert set(found.sweep.judged) == {
        f"rank={rank},learning_rate={rate}" for rank in (2, 4) for rate in ("0.001", "0.1")}  # fmt: skip
    assert [metric.kind for metric in found.sweep.metrics] == ["subject_fidelity", "class_drift", "copying"]
    drifts = [arm.score.mean for arm in found.sweep.metrics[1].arms.values()]
    assert drifts == sorted(drifts)
    assert any(line.startswith(f"{BEST} is taken: likeness") for line in watch.said)
    assert any(line.startswith(BEST) and " taken" in line for line in watch.said)


def test_the_base_is_drawn_once_for_all(made: tuple[Found, Lines], own_cache: Path) -> None:
    """Every variant is judged beside the same files, which the cache keeps."""
    runs = [RunDir(made[0].path / one.run) for one in made[0].sweep.variants.values()]
    kept = [path for path in (own_cache / "base-pictures").glob("*/step-000000") if same(path, runs[0])]
    assert len(kept) == 1
    assert all(same(kept[0], run) for run in runs)


def same(pictures: Path, run: RunDir) -> bool:
    """Tell whether a folder's pictures are the very ones that a run's base was judged by."""
    judged = sorted((run.validation / "step-000000").glob("*.png"))
    return all((pictures / one.name).is_file() and (pictures / one.name).read_bytes() == one.read_bytes()
               for one in judged)  # fmt: skip


def test_encoders_are_shared_while_a_run_has_use_for_them(random_base: Path) -> None:
    first = SharedEncoders.of(str(random_base), ("colour_histogram",))
    assert SharedEncoders.of(str(random_base), ("colour_histogram",)) is first
    assert SharedEncoders.of(str(random_base), ("lite0", "colour_histogram")) is not first


def test_the_command_that_is_printed_trains_it_again(
    made: tuple[Found, Lines], tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    found, watch = made
    command = found.sweep.command
    assert command
    assert f"the same again: {command}" in watch.said
    name, verb, *words = shlex.split(command)
    assert (name, verb) == ("limner", "train")
    code, _, err = run_limner(verb, *words, "--run", tmp_path / "again")
    assert code == 0, err
    assert found.run
    assert apart(RunDir(tmp_path / "again"), found.run) < WILD


def test_the_page_shows_every_variant_and_loads_nothing(made: tuple[Found, Lines]) -> None:
    page = made[0].page.read_text(encoding="utf-8")
    assert made[0].page == made[0].path / "sweep.html"
    assert (
        page.count('<img src="data:image/png;base64,') == 5 + 6 * 5
    )  # what was learned from; 6 prompts, 4 and the base
    assert "4\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}0.1" in page
    assert "Likeness to the subject against change of others of the class" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "limner train" in page


def test_what_is_there_is_not_done_again_and_another_sweep_is_refused(
    made: tuple[Found, Lines], settings: dict[str, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made[0].path, tmp_path / "sweep"))
    (run / "sweep.json").unlink()
    shutil.rmtree(run / "taken")
    known = read_json(run / "plan.json")
    (run / "plan.json").write_text(
        json.dumps({"variants": known["variants"]})
    )  # as a kill after the last step leaves it
    watch = Lines()
    again = sweep(settings, run, watch)
    assert again.sweep == made[0].sweep
    assert "train" not in watch.phases
    assert (run / "taken" / "adapter.safetensors").is_file()
    with pytest.raises(
        UserError, match=r"was begun with other variants \(4, now 2; one is rank=2,learning_rate=0.001\)"
    ):
        sweep(settings, run, axes={"seed": [0, 1]})
    with pytest.raises(UserError, match="was made with steps=4, and now steps=7 is asked for"):
        sweep({**settings, "steps": 7}, run)


def test_stopped_the_same_command_goes_on(made: tuple[Found, Lines], settings: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "sweep"
    (run / "runs" / "rank=2,learning_rate=0.001").mkdir(parents=True)  # as a kill before the first step leaves it
    (run / "plan.json").write_text("{}")
    with pytest.raises(Interrupted, match="What is finished stays; the same command goes on."):
        sweep(settings, run, Stopped("rank=4,learning_rate=0.1   3/4"))
    assert not (run / "sweep.json").exists()
    again = sweep(settings, run)
    assert again.sweep.taken == made[0].sweep.taken
    for name in again.sweep.variants:
        assert apart(RunDir(run / "runs" / name), RunDir(made[0].path / "runs" / name)) < 1e-5


def test_a_variant_that_breaks_is_said_and_the_others_are_judged(settings: dict[str, Any], tmp_path: Path) -> None:
    watch = Lines()
    found = sweep(settings, tmp_path / "sweep", watch, {"learning_rate": [0.1, 1e30]})
    assert found.sweep.judged == ("learning_rate=0.1",)
    assert found.sweep.variants["learning_rate=1e+30"].standing == "not compared"
    assert any(line.startswith("Not judged: learning_rate=1e+30 (") for line in watch.said)
    again = Lines()
    sweep(settings, tmp_path / "sweep", again, {"learning_rate": [0.1, 1e30]})
    assert "train" not in again.phases
    with pytest.raises(Guarded, match="2 of 2 variants have not come to their end"):
        sweep(settings, tmp_path / "wild", axes={"learning_rate": [1e30, 1e31]})


def test_without_a_winner_nothing_is_taken_and_that_is_said(
    plain: dict[str, Any], tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in {**plain, "steps": 2}.items()]
    code, out, err = run_limner("sweep", PICTURES, "learning_rate=1e-6,2e-6", *words, "--recipe", "demo", "--run",
                                tmp_path / "sweep", "--json")  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told == {"sweep": str(tmp_path / "sweep" / "sweep.json"), "page": str(tmp_path / "sweep" / "sweep.html"),
                    "taken": None, "command": None}  # fmt: skip
    assert "none is taken" in (tmp_path / "sweep" / "sweep.html").read_text(encoding="utf-8")
    assert not (tmp_path / "sweep" / "taken").exists()


def test_several_values_are_told_from_a_text_with_commas() -> None:
    words = ["adapter.rank=4, 8,16", "pictures.caption=a dog, sitting", 'validation.prompts=["a", "b"]', "steps=4",
             "optimizer.schedule=constant,cosine"]  # fmt: skip
    axes, others = split_axes(words)
    assert axes == {"adapter.rank": ["4", "8", "16"], "optimizer.schedule": ["constant", "cosine"]}
    assert others == words[1:4]
