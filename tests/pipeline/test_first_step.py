"""On a CPU with memory to spare the first step waits for its own pictures only; the run is the same bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limner import run, training_run
from limner.families.source import ASSETS
from limner.rundir import RunDir

CRITTER = ASSETS / "demo" / "critter"
BEGUN = ["check", "load", "prepare", "load", "train"]
"""A run's phases up to its first steps."""


def train(base: Path, folder: Path, **more: Any) -> RunDir:
    settings = {"base": str(base), "steps": 4, "pictures.class_noun": "critter", "checkpoint.every_steps": 1, **more}
    return run.train(CRITTER, recipe="lora", settings=settings, run=folder)


def phases(folder: RunDir) -> list[str]:
    return [row["name"] for row in folder.read_log("phase")]


def result(folder: RunDir) -> tuple[bytes, list[float]]:
    """Return what was learned, and the loss of every step."""
    return folder.adapter.read_bytes(), [row["loss"] for row in folder.read_log("step")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a cache that holds nothing yet."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"pictures.workers": 0}], ids=["plain", "parts", "alone"])
def test_pictures_that_the_first_step_does_not_need_are_encoded_after_it(
    random_base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    early = train(random_base, tmp_path / "early", **settings)
    assert phases(early) == [*BEGUN, "prepare", "train"]
    cached = train(random_base, tmp_path / "cached", **settings)
    assert phases(cached) == BEGUN
    assert result(early) == result(cached)


@pytest.mark.usefixtures("cache")
def test_where_memory_may_not_be_enough_all_are_encoded_first(
    random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = train(random_base, tmp_path / "early")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(training_run, "is_plenty", lambda *_: False)
    first = train(random_base, tmp_path / "first")
    assert phases(first) == [*BEGUN[:-1], "probe", "train"]
    assert result(early) == result(first)


def test_a_run_that_ends_while_the_rest_is_encoded_goes_on(
    random_base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(random_base, tmp_path / "whole")
    monkeypatch.setenv("LIMNER_CACHE", str(cache.with_name("another")))
    encode = training_run.prepare

    def interrupted(*args: Any, **more: Any) -> Any:
        prepared = encode(*args, **more)
        assert prepared.encode_rest is not None
        prepared.encode_rest = stop
        return prepared

    def stop(_: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(random_base, tmp_path / "stopped")
    stopped = RunDir(tmp_path / "stopped")
    assert [row["step"] for row in stopped.read_log("step")] == [1]
    run.resume(stopped.path)
    assert phases(stopped)[-3:] == ["load", "prepare", "train"], "before the second step"
    assert result(stopped) == result(whole)
