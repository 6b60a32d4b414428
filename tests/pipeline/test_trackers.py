"""Trackers: TensorBoard reads what a real run wrote, every other one can be made, and one that fails ends nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

import limner
from limner.errors import UserError
from limner.families.source import ASSETS
from limner.recipe import load_recipe, settings_of
from limner.train.trackers import Tracker, Trackers, make_tracker, require_trackers

PICTURES = ASSETS / "demo" / "critter"


def test_tensorboard_has_every_step_and_the_previews(random_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"base": str(random_base), "steps": 3, "prior.enabled": False, "tracking": ["tensorboard"],
                "preview.every_steps": 2, "preview.images": 2, "generation.num_inference_steps": 2}  # fmt: skip
    run = limner.train(PICTURES, recipe="demo", run=tmp_path / "run", settings=settings)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    logged = run.read_log("step")
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row["loss"] for row in logged])
    assert events.Scalars("learning_rate/unet")[0].value == pytest.approx(logged[0]["lr"]["unet"])
    assert "prior_loss" not in events.Tags()["scalars"]
    (shown,) = events.Images("preview")
    assert (shown.step, shown.width, shown.height) == (2, 128, 64)


@pytest.mark.parametrize("name", get_args(Tracker))
def test_every_tracker_can_be_made_and_none_is_imported_for_it(name: str, tmp_path: Path) -> None:
    there = set(sys.modules)
    assert make_tracker(name, tmp_path).name == name
    if name != "tensorboard":
        assert name not in set(sys.modules) - there


def test_a_tracker_that_fails_is_said_and_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    said: list[str] = []
    trackers = Trackers(["tensorboard"], tmp_path, settings_of(load_recipe("demo")), said.append)
    trackers.log({"loss": 1.0}, 1)
    trackers.log_pictures("preview", [PICTURES / "1.png"], 1)
    trackers.close()
    assert len(said) == 1
    assert said[0].startswith("tracking: tensorboard is left out from here on (")


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    require_trackers([])
    with pytest.raises(UserError, match=r"^tracking: swanlab is not installed\. pip install swanlab, or leave it out"):
        require_trackers(["swanlab"])


def test_settings_are_told_flat() -> None:
    told = settings_of(load_recipe("demo", {"tracking": ["tensorboard"]}))
    assert (told["adapter.rank"], told["tracking"], told["steps"]) == (8, "['tensorboard']", 150)
    assert {type(value) for value in told.values()} <= {str, int, float, bool}
