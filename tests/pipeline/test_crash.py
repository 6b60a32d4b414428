"""Runs whose disk fails, whose checkpoints are damaged, whose result is missing: nothing learned is lost."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import limner
from limner.errors import Unwritable, UserError
from limner.families.family import Family
from limner.families.source import ASSETS
from limner.generate.draw import Sampling, draw, requests_for
from limner.rundir import RunDir
from limner.watch import Watch

PICTURES = ASSETS / "demo" / "critter"


class Told(Watch):
    """Remembers what was said, and makes the disk refuse large files from one moment of a phase to another."""

    def __init__(self, refuse: dict[tuple[str, int], int] | None = None) -> None:
        self.said: list[str] = []
        self.refuse, self.name = refuse or {}, ""

    def begin(self, phase: str) -> None:
        self.name = phase

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._heed(done)

    def end(self) -> None:
        self._heed(-1)

    def say(self, text: str) -> None:
        self.said.append(text)

    def _heed(self, done: int) -> None:
        if (size := self.refuse.get((self.name, done))) is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture(autouse=True)
def any_size_again():
    """Let files be of any size when a test has ended."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


ANY_SIZE = resource.RLIM_INFINITY


@pytest.fixture(scope="module")
def settings(random_base: Path) -> dict[str, Any]:
    return {"base": str(random_base), "steps": 6, "prior.enabled": False, "batch": 2, "checkpoint.every_steps": 2,
            "adapter.targets": "attention", "adapter.rank": 4}  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(settings, tmp_path_factory.mktemp("whole") / "run")


def train(settings: dict[str, Any], run: Path, watch: Watch | None = None) -> RunDir:
    return limner.train(PICTURES, recipe="demo", run=run, settings=settings, watch=watch)


def steps_of(run: RunDir) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "memory_gib")}
        for row in run.read_log("step")
    ]


def checkpoints_of(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_a_checkpoint_that_the_disk_refuses_is_said_once_and_the_run_goes_on(
    settings: dict[str, Any], whole: RunDir, tmp_path: Path
) -> None:
    size = (whole.checkpoints / "step-000006" / "state.safetensors").stat().st_size
    watch = Told({("train", 2): size // 2, ("train", 5): ANY_SIZE})
    run = train({**settings, "checkpoint.every_steps": 1}, tmp_path / "run", watch)
    (said,) = [line for line in watch.said if "cannot be written" in line]
    assert "step-000002: cannot be written (File too large)" in said
    assert said.endswith("The training goes on, and the next checkpoint is tried again.")
    assert checkpoints_of(run) == ["step-000005", "step-000006"]
    assert steps_of(run) == steps_of(whole)


def test_a_result_that_the_disk_refuses_is_had_without_training_again(
    settings: dict[str, Any], whole: RunDir, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Unwritable, match=rf"without training again: limner train --resume {run}") as error:
        train(settings, run, Told({("train", -1): whole.adapter.stat().st_size // 2}))
    assert error.value.exit_code == 2
    assert checkpoints_of(RunDir(run)) == ["step-000004", "step-000006"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (ANY_SIZE, ANY_SIZE))
    folder = limner.resume(run)
    assert folder.adapter.read_bytes() == whole.adapter.read_bytes()
    assert steps_of(folder) == steps_of(whole)
    with pytest.raises(UserError, match="is already finished: 6 of 6 steps"):
        limner.resume(run)


def test_the_result_of_fewer_steps_is_not_taken_for_that_of_all(
    settings: dict[str, Any], whole: RunDir, tmp_path: Path
) -> None:
    """As after a kill between the last checkpoint of a longer run and its result: what is there is the shorter's."""
    run = train({**settings, "steps": 4}, tmp_path / "run")
    short = run.adapter.read_bytes()
    about = json.loads(run.provenance.read_text())
    limner.resume(run.path, settings={"steps": 6})
    run.adapter.write_bytes(short)
    run.provenance.write_text(json.dumps({**json.loads(run.provenance.read_text()), "chosen": about["chosen"]}))
    assert limner.resume(run.path).adapter.read_bytes() != short


def test_a_damaged_checkpoint_is_said_and_the_steps_are_done_again(
    settings: dict[str, Any], whole: RunDir, tmp_path: Path
) -> None:
    """The log then has every step once, and the result is that of a run in one go."""
    run = train(settings, tmp_path / "run")
    newest = run.checkpoints / "step-000006" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    watch = Told()
    limner.resume(run.path, watch=watch)
    assert "checkpoints/step-000006 is damaged (its checksum differs); going on from step-000004." in watch.said
    assert steps_of(run) == steps_of(whole)
    assert run.adapter.read_bytes() == whole.adapter.read_bytes()
    assert newest.read_bytes() == (whole.checkpoints / "step-000006" / "state.safetensors").read_bytes()


def test_what_does_not_fit_is_said_before_the_first_step(settings: dict[str, Any], tmp_path: Path) -> None:
    wanted = (
        r"run: needs about [\d.]+ GiB for checkpoints and result, and /.* has [\d.]+ GiB free. Free some, or set che"
    )
    with pytest.raises(UserError, match=wanted):
        train({**settings, "steps": 10**8, "checkpoint.every_steps": 1, "checkpoint.keep": 10**7}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="takes Linux's /proc as a disk that cannot be written")
def test_a_place_that_cannot_be_written_is_found_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {"base": "tiny", "steps": 2, "prior.enabled": False}
    watch = Told()
    with pytest.raises(UserError, match="/proc/self/run: cannot be written .* Name another folder with --run"):
        train(nowhere, Path("/proc/self/run"), watch)
    monkeypatch.setenv("LIMNER_CACHE", "/proc/self/cache")
    with pytest.raises(UserError, match="/proc/self/cache: cannot be written .* LIMNER_CACHE"):
        train(nowhere, tmp_path / "run", watch)
    assert watch.name == "check"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    for number in range(2):
        noise = np.random.default_rng(number).normal(128, 50 + 100 * number, (64, 64)).clip(0, 255)
        Image.fromarray(noise.astype(np.uint8)).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_keeping_the_best_changes_nothing_but_what_is_kept(
    settings: dict[str, Any], whole: RunDir, held_out: Path, tmp_path: Path
) -> None:
    """Bit for bit the same training with and without it; the result is then of the best step, if that is asked."""
    watch = Told()
    wild = {**settings, "ema.decay": 0.5, "learning_rate": 8.0, "optimizer.schedule": "constant"}
    best = {"evaluation.pictures": str(held_out), "checkpoint.choose": "loss", "checkpoint.keep": 1}
    run = train({**wild, **best}, tmp_path / "run", watch)
    alike = train(wild, tmp_path / "alike")
    last = "step-000006/state.safetensors"
    assert (run.checkpoints / last).read_bytes() == (alike.checkpoints / last).read_bytes()
    assert steps_of(run) == steps_of(alike)
    losses = {row["step"]: row["validation_loss"] for row in run.read_log("validation")}
    assert list(losses) == [2, 4, 6]
    lowest = min(losses, key=lambda step: losses[step])
    assert lowest < 6, f"a learning rate this high should do harm: {losses}"
    assert checkpoints_of(run) == sorted({f"step-{lowest:06d}", "step-000006"})
    assert any(line.startswith(f"result: step-{lowest:06d}, whose validation loss of ") for line in watch.said)
    chosen = json.loads(run.provenance.read_text())["chosen"]
    seconds = round(sum(row["seconds"] for row in run.read_log("step") if row["step"] <= lowest), 3)
    assert chosen == {"choose": "loss", "step": lowest, "trained_steps": 6, "is_early": False,
                      "validation_loss": losses[lowest], "seconds": seconds}  # fmt: skip
    shorter = train({**wild, "steps": lowest}, tmp_path / "shorter")
    assert tensors(run) == tensors(shorter)
    limner.resume(run.path, settings={"checkpoint.choose": "last"})
    assert tensors(run) == tensors(alike)


def tensors(run: RunDir) -> bytes:
    """Return the bytes of an adapter's tensors, without its header, which has the recipe."""
    data = run.adapter.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_a_best_one_that_was_never_measured_is_not_replaced_by_the_last(
    whole: RunDir, held_out: Path, tmp_path: Path
) -> None:
    run = RunDir(shutil.copytree(whole.path, tmp_path / "run"))
    asked = {"evaluation.pictures": str(held_out), "checkpoint.choose": "loss"}
    with pytest.raises(
        UserError, match=f"no checkpoint has a validation loss.*--resume {run.path} checkpoint.choose=last"
    ):
        limner.resume(run.path, settings=asked)
    assert run.adapter.read_bytes() == whole.adapter.read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"checkpoint.choose": "loss"}, "evaluation.pictures=FOLDER"),
        ({"checkpoint.choose": "evidence"}, "such as validation.every_steps=1"),
    ],
)
def test_a_best_one_needs_something_to_be_judged_by(
    settings: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        limner.check(PICTURES, recipe="demo", settings={**settings, **more})


def test_a_drawing_that_was_broken_off_ends_with_the_same_pictures(family: Family, tmp_path: Path) -> None:
    """Bit for bit: what is missing is drawn in the batches that it would have been in."""
    requests = requests_for("free", [(prompt, prompt) for prompt in ("a dog", "a red plant", "a house")], range(4))
    sampling = Sampling(num_inference_steps=3, batch=12)
    about: dict[str, Any] = {"resolution_px": 64, "about": {}, "progress": lambda done, total: None}
    draw(family, requests, tmp_path, sampling=sampling, **about)
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    for name in ("manifest.json", *sorted(whole)[:7]):
        (tmp_path / name).unlink()
    draw(family, requests, tmp_path, sampling=sampling, **about)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == whole
