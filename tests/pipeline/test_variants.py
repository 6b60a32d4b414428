"""Variants of one command: each row is what a run of its own would be; stopped, broken, resumed and planned alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limner
from limner.errors import Guarded, UserError
from limner.families.source import ASSETS
from limner.many import _fitted
from limner.recipe import load_recipe
from limner.rundir import RunDir
from limner.watch import Watch
from tests.pipeline.apart import apart
from tests.pipeline.conftest import Result

CRITTER, ROBOT = (ASSETS / "demo" / name for name in ("critter", "robot"))
TABLE = f"""\
name,pictures,class_noun,adapter.rank,learning_rate,seed,steps,batch
small,{CRITTER},critter,2,1e-3,0,3,1
large,{CRITTER},critter,8,3e-4,1,5,2
robot,{ROBOT},robot,4,2e-3,2,4,1
wild,{ROBOT},robot,4,1e30,2,4,1
"""


class Stopping(Watch):
    """Asks one run to stop, by the file in its folder, when it has taken its first step."""

    def __init__(self, runs: Path) -> None:
        self.place, self.has_asked = runs / "rank=4,seed=0", False

    def progress(self, done: int, total: int, note: str = "") -> None:
        if "rank=4,seed=0 1/4" in note and not self.has_asked:
            self.has_asked = True
            (self.place / "stop").touch()


@pytest.fixture(scope="module")
def settings(random_base: Path) -> dict[str, Any]:
    return {"base": str(random_base), "checkpoint.every_steps": 2, "pictures.workers": 0, "adapter.save_precision":
            "float32", "optimizer.warmup_steps": 0}  # fmt: skip


def words(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def test_each_row_is_what_a_run_of_its_own_would_be_and_fails_alone(
    settings: dict[str, Any], tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    (tmp_path / "runs.csv").write_text(TABLE)
    code, out, err = run_limner("train", "--variants", tmp_path / "runs.csv", "--run", tmp_path / "runs", "slots=3",
                                *words(settings), "--json")  # fmt: skip
    assert code == 3, err
    assert "1 of 4 variants have not come to their end:\n  wild: " in err
    told = {row["name"]: row for row in json.loads(out)["variants"]}
    assert [name for name, row in told.items() if row["error"]] == ["wild"]
    for row in TABLE.splitlines()[1:4]:
        name, pictures, noun, rank, rate, seed, steps, batch = row.split(",")
        own = {"pictures.class_noun": noun, "adapter.rank": int(rank), "learning_rate": float(rate), "seed": int(seed),
               "steps": int(steps), "batch": int(batch)}  # fmt: skip
        alone = limner.train(pictures, settings={**settings, **own}, run=tmp_path / name)
        run = RunDir(tmp_path / "runs" / name)
        assert apart(run, alone) < 1e-5
        assert run.recipe.read_text() == alone.recipe.read_text()
        assert len(run.read_log("step")) == int(steps)


def test_a_grid_stopped_by_a_file_goes_on(
    settings: dict[str, Any], tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    asked = {**settings, "steps": 4, "pictures.class_noun": "critter", "learning_rate": 1e-3}
    grid, there = "adapter.rank=2,4 seed=0,1", tmp_path / "runs"
    many = limner.train_many(variants=grid, pictures=CRITTER, settings=asked, run=there, watch=Stopping(there))
    assert many.kind == "variants"
    assert [one.name for one in many.ended if one.error] == ["rank=4,seed=0"]
    code, out, err = run_limner("train", "--resume", there)
    assert code == 0, err
    assert out.splitlines()[-1] == f"runs: {there}"
    for seed in (0, 1):
        own = {**asked, "adapter.rank": 4, "seed": seed}
        alone = limner.train(CRITTER, settings=own, run=tmp_path / f"alone-{seed}")
        assert apart(RunDir(there / f"rank=4,seed={seed}"), alone) < 1e-5
    assert "all 4 variants are finished" in run_limner("train", "--resume", there)[2]


def test_one_word_is_learned_by_several(settings: dict[str, Any], tmp_path: Path) -> None:
    """Slots that learn the same word have vectors of their own for it."""
    asked = {"base": settings["base"], "steps": 3, "pictures.class_noun": "critter", "pictures.workers": 0,
             "pictures.token": "<ann>", "adapter.vectors": 2, "optimizer.warmup_steps": 0}  # fmt: skip
    rows = [{"learning_rate": rate, "seed": seed} for rate, seed in ((1e-2, 0), (2e-2, 1))]
    many = limner.train_many(
        variants=rows, pictures=CRITTER, recipe="textual-inversion", settings=asked, run=tmp_path / "runs"
    )
    many.require_all()
    for row, one in zip(rows, many.ended, strict=True):
        alone = limner.train(
            CRITTER, recipe="textual-inversion", settings={**asked, **row}, run=tmp_path / f"{row['seed']}"
        )
        assert one.folder
        assert apart(one.folder, alone) < 1e-5


def test_all_that_break_are_said_with_what_guarded_them(settings: dict[str, Any], tmp_path: Path) -> None:
    asked = {**settings, "steps": 2, "pictures.class_noun": "critter", "checkpoint.every_steps": 0}
    many = limner.train_many(
        variants="learning_rate=1e30,1e31", pictures=CRITTER, settings=asked, run=tmp_path / "runs"
    )
    with pytest.raises(Guarded, match="2 of 2 variants have not come to their end"):
        many.require_all()


def test_the_plan_is_that_of_the_largest_row(
    settings: dict[str, Any], tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    (tmp_path / "runs.csv").write_text("\n".join(TABLE.splitlines()[:4]))
    code, out, err = run_limner("plan", "--variants", tmp_path / "runs.csv", *words(settings))
    assert code == 0, err
    assert "3 variants, 3 at a time, 12 steps in all" in out


def test_a_batch_is_parted_for_memory_as_the_largest_is_and_stays_what_it_was(settings: dict[str, Any]) -> None:
    """The measure that `fit` took for a batch of 8: every run accumulates alike, with a batch of its own."""
    taken = {"batch": 2, "accumulate": 4, "unload": True}
    recipe, own = _fitted("a", load_recipe("lora", {**settings, "fit": True, "batch": 4}), taken)
    assert (recipe.batch, recipe.accumulate, recipe.unload, recipe.fit) == (1, 4, True, False)
    assert own == {"batch": 1, "accumulate": 4, "unload": True}
    plain = load_recipe("lora", {**settings, "batch": 3})
    assert _fitted("a", plain, {}) == (plain, {})
    with pytest.raises(
        UserError, match="a: batch=3 cannot be computed in 4 equal parts, as the largest is. Use a multiple"
    ):
        _fitted("a", plain, taken)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "adapter.rank\nten\n",
            r"runs.csv, row 2: adapter.rank = 'ten' is not allowed \(input should be a valid integer",
        ),
        ("learning_rate\n-1\n", "runs.csv, row 2: learning_rate = -1 is not allowed"),
        ("steps\n4\n", "runs.csv, row 2: steps is there, and steps=2 is given to all. Leave one of the two out"),
        ("adapter.vectors\n4\n", "adapter.vectors is the same for all slots"),
        ("seed,optimizer.cycles\n1,2\n2,2\n", "runs.csv, row 2: optimizer.cycles: has no effect, because"),
        ("name,evaluation.pictures\na,nowhere\n", "nowhere: there is no such file or folder"),
    ],
)
def test_what_a_row_cannot_have_is_found_before_anything_is_loaded(
    table: str, message: str, settings: dict[str, Any], tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    (tmp_path / "runs.csv").write_text(table)
    code, _, err = run_limner("train", CRITTER, "--variants", tmp_path / "runs.csv", "--run", tmp_path / "runs",
                              *words(settings), "steps=2", "pictures.class_noun=critter", "--json")  # fmt: skip
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "runs").exists()
