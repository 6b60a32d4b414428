"""Many subjects at once: each run is what a run of its own would be; queued, stopped, killed, broken, resumed alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import limner
from limner.board import Board
from limner.errors import Guarded, Interrupted, UserError
from limner.families.source import ASSETS
from limner.many import Many
from limner.recipe import load_recipe
from limner.run import check, write_down
from limner.rundir import RunDir, read_json
from limner.training_together import Waiting, train_together
from limner.watch import Watch
from tests.pipeline.apart import apart
from tests.pipeline.conftest import Result
from tests.pipeline.lines import Lines

PICTURES = {"ann critter": ("critter", "123"), "bob robot": ("robot", "12"), "cid plant": ("plant", "1234")}
"""Subjects by their folder, each with the demo's pictures that it has."""
KILLED = """
import json, os, signal, sys
import limner
from limner.watch import Watch

class Killed(Watch):
    def progress(self, done, total, note=""):
        if "cid plant   2/4" in note:
            print("torch._inductor.compile_fx" in sys.modules, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

limner.train_many(**json.loads(sys.argv[1]), watch=Killed())
"""


class Sent(Watch):
    """Sends this process a signal when the board shows something."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self.shown in note:
            self.shown = "never"
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of three subjects with unequal numbers of pictures."""
    folder = tmp_path_factory.mktemp("subjects")
    for name, (shown, numbers) in PICTURES.items():
        (folder / name).mkdir()
        for number in numbers:
            shutil.copy(ASSETS / "demo" / shown / f"{number}.png", folder / name)
    return folder


@pytest.fixture(scope="module")
def settings(random_base: Path) -> dict[str, Any]:
    return {"base": str(random_base), "epochs": None, "steps": 4, "checkpoint.every_steps": 2, "learning_rate": 1e-3,
            "pictures.workers": 0, "adapter.save_precision": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def made(subjects: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Many, list[str]]:
    """Train the three, two at a time, beside one whose pictures cannot be read."""
    place = tmp_path_factory.mktemp("made")
    shutil.copytree(subjects, place / "subjects")
    (place / "subjects" / "dee cat").mkdir()
    (place / "subjects" / "dee cat" / "1.png").write_bytes(b"no picture")
    lines = Lines()
    many = limner.train_many(place / "subjects", settings={**settings, "slots": 2}, run=place / "runs", watch=lines)
    return many, lines.said


def test_each_has_what_a_run_of_its_own_has(
    made: tuple[Many, list[str]], subjects: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    many, said = made
    by_name = {one.name: one for one in many.ended}
    for name in PICTURES:
        run = by_name[name].folder
        assert run
        token, noun = name.split()
        own = {**settings, "pictures.token": token, "pictures.class_noun": noun}
        alone = limner.train(subjects / name, settings=own, run=tmp_path / name)
        assert apart(run, alone) < 1e-5
        newest = "checkpoints/step-000004/state.safetensors"
        ours, theirs = (load_file(folder.path / newest) for folder in (run, alone))
        assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}
        assert {path.name for path in run.path.iterdir()} == {path.name for path in alone.path.iterdir()}
        assert run.recipe.read_text() == alone.recipe.read_text()
        assert [row["step"] for row in run.read_log("step")] == [1, 2, 3, 4]
        assert {row["name"] for row in run.read_log("phase")} >= {"load", "prepare", "train"}
        known = read_json(run.provenance)
        assert known["trained"]["steps"] == 4
        assert known.keys() == read_json(alone.provenance).keys()
    assert "4 subjects" not in " ".join(said)
    assert any(line.startswith("cid plant: trains: unet") for line in said)


def test_one_that_cannot_be_read_is_left_out_and_said(made: tuple[Many, list[str]]) -> None:
    many, said = made
    assert [one.name for one in many.ended if one.error] == ["dee cat"]
    assert any(line.startswith("dee cat: is left out: 1 of 1 pictures cannot be used:") for line in said)
    with pytest.raises(
        UserError, match=r"1 of 4 subjects have not come to their end:\n  dee cat: .* No picture is left.\n3 finished"
    ) as error:
        many.require_all()
    assert error.value.exit_code == 2
    assert sorted(path.name for path in many.path.iterdir()) == sorted([*PICTURES, "subjects.json"])


def test_stopped_and_resumed_all_go_on(
    made: tuple[Many, list[str]], subjects: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C while two train and one waits: what is stopped is saved; all end as those that were never stopped."""
    many = limner.train_many(
        subjects, settings={**settings, "slots": 2}, run=tmp_path / "runs", watch=Sent("ann critter 3/4")
    )
    assert ["step 3 of 4" in str(one.error) or str(one.error) for one in many.ended] == [
        True, True, "Stopped while it waited for a slot."]  # fmt: skip
    with pytest.raises(Interrupted, match=rf"0 finished. The others go on with: limner train --resume {many.path}"):
        many.require_all()
    again = limner.resume_many(many.path)
    again.require_all()
    for one, other in zip(made[0].ended, again.ended, strict=False):
        assert one.folder
        assert other.folder
        assert apart(one.folder, other.folder) < 1e-5
        assert [row["step"] for row in other.folder.read_log("step")] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="all 3 subjects are finished"):
        limner.resume_many(many.path)


def test_killed_and_resumed_each_is_finished_once(
    made: tuple[Many, list[str]], subjects: Path, settings: dict[str, Any], tmp_path: Path, root: Path,
    run_limner: Callable[..., Result],
) -> None:  # fmt: skip
    """A kill while the last one trains: the two that have finished stay as they are, it goes on from its checkpoint."""
    asked = {"subjects": str(subjects), "settings": {**settings, "slots": 2}, "run": str(tmp_path / "runs")}
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", KILLED, json.dumps(asked)]
    killed = subprocess.run(command, cwd=root, check=False, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if not torch.accelerator.is_available():
        assert killed.stdout.splitlines()[-1] == "False", "PyTorch's compiler was loaded, and nothing is compiled"
    first, last = (RunDir(tmp_path / "runs" / name) for name in ("ann critter", "cid plant"))
    before = first.adapter.stat().st_mtime_ns
    assert not last.adapter.exists()
    code, out, err = run_limner("train", "--resume", tmp_path / "runs")
    assert code == 0, err
    assert out.splitlines()[-2:] == [f"cid plant: {last.adapter}", f"runs: {tmp_path / 'runs'}"]
    assert first.adapter.stat().st_mtime_ns == before
    for one in made[0].ended[:3]:
        assert one.folder
        assert apart(one.folder, RunDir(tmp_path / "runs" / one.name)) < 1e-5


def waiting(name: str, settings: dict[str, Any], place: Path, subjects: Path) -> Waiting:
    recipe = load_recipe("lora", {**settings, "pictures.token": name.split()[0], "pictures.class_noun": "thing"})
    folder = RunDir.create(place / name, name=name)
    write_down(folder, recipe, [subjects / name], None, fitted={})
    return Waiting(name, folder, recipe, check(subjects / name, recipe=recipe))


def test_numbers_that_break_and_a_file_that_stops_concern_one_run(
    subjects: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    wild = {**settings, "learning_rate": 1e30, "checkpoint.every_steps": 0}
    runs = [waiting("ann critter", settings, tmp_path, subjects), waiting("bob robot", wild, tmp_path, subjects),
            waiting("cid plant", settings, tmp_path, subjects)]  # fmt: skip
    (runs[2].folder.path / "stop").touch()
    names = [one.name for one in runs]
    ann, bob, cid = train_together(runs, slots=3, watch=Watch(), board=Board(Watch(), names))
    assert ann.error is None
    assert runs[0].folder.adapter.is_file()
    assert isinstance(bob.error, Guarded)
    assert "no longer finite" in str(bob.error)
    assert bob.error.exit_code == 3
    assert isinstance(cid.error, Interrupted)
    assert str(cid.error).startswith("Stopped at step 1 of 4: ")
    assert runs[2].folder.read_log("stopped")[0]["text"] == "the file `stop` in its folder"
    assert [p.name for p in runs[2].folder.checkpoints.iterdir()] == ["step-000001"]
    limner.resume(runs[2].folder.path)
    alone = limner.train(subjects / "ann critter", recipe=runs[0].recipe, run=tmp_path / "alone")
    assert apart(runs[0].folder, alone) < 1e-5


def test_learned_words_of_sdxl_are_drawn_previewed_and_scored_alone(
    subjects: Path, random_xl: Path, tmp_path: Path, run_limner: Callable[..., Result]
) -> None:
    """Two words on one base; previews between steps; each run is generated, evaluated and reported as any other."""
    shutil.copytree(subjects, tmp_path / "subjects", ignore=shutil.ignore_patterns("cid*"))
    more = ("steps=2", "batch=2", "adapter.vectors=2", "preview.every_steps=2", "preview.images=1",
            "optimizer.warmup_steps=0", "generation.num_inference_steps=1", "evaluation.images_per_prompt=1",
            "evaluation.images_per_class_prompt=1")  # fmt: skip
    code, out, err = run_limner("train", "--subjects", tmp_path / "subjects", "--recipe", "textual-inversion",
                                "--run", tmp_path / "runs", f"base={random_xl}", *more, "--json")  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert [row["name"] for row in told["subjects"]] == ["ann critter", "bob robot"]
    assert told["subjects"][1]["files"] == [str(tmp_path / "runs" / "bob robot" / "embeddings" / "bob.safetensors")]
    run = tmp_path / "runs" / "bob robot"
    assert (run / "previews" / "step-000002" / "manifest.json").is_file()
    assert run_limner("generate", run)[0] == 0
    assert run_limner("evaluate", run)[0] == 0
    assert run_limner("report", run)[0] == 0
    own = ("pictures.token=<bob>", "pictures.class_noun=robot", f"base={random_xl}", *more)
    code, _, err = run_limner(
        "train", subjects / "bob robot", "--recipe", "textual-inversion", "--run", tmp_path / "one", *own
    )
    assert code == 0, err
    assert apart(RunDir(run), RunDir(tmp_path / "one")) < 1e-5
    picture = "previews/step-000002/free-00-00.png"
    assert (run / picture).is_file()
