"""Several processes on one run, started by torchrun: stopped, resumed, one of them failing; what cannot be split."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limner import run
from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.cli import main
from limner.errors import UserError
from limner.families.family import Family
from limner.families.source import ASSETS
from limner.objectives import Denoising
from limner.ranks import STARTED, Ranks, first_to_say, joined, started
from limner.rundir import RunDir, read_json
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from tests.pipeline.drawn import Drawn
from tests.pipeline.lines import Lines

CRITTER = ASSETS / "demo" / "critter"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def launch(*words: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in STARTED} | {"OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, *map(str, words)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def settings(random_base: Path) -> list[str]:
    return [f"base={random_base}", "batch=2", "pictures.class_noun=critter", "adapter.targets=attention",
            "adapter.save_precision=float32", "checkpoint.every_steps=0"]  # fmt: skip


@pytest.mark.timeout(600)
def test_two_processes_stop_fail_and_go_on(settings: list[str], root: Path, tmp_path: Path) -> None:
    """SIGINT to torchrun saves one checkpoint; a process that fails ends all; the end is that of a run never stopped.

    Gone on with by two processes it is that to the last bit, and by one to about seven digits.
    """
    train = ("-m", "--", "limner", "train")
    shared = launch(*train, CRITTER, "--run", tmp_path / "run", "steps=400", *settings)
    assert shared.stderr
    said = []
    while not (said and said[-1].startswith("train: ")):
        said.append(shared.stderr.readline())
        assert shared.poll() is None, said
    shared.send_signal(signal.SIGINT)
    err = "".join(said) + shared.communicate(timeout=300)[1]
    assert shared.returncode != 0
    assert not list(tmp_path.rglob("*.part"))
    for line in ("2 processes share each batch of 2", "trains: unet", "Stopped at step "):
        assert err.count(line) == 1, err
    folder = RunDir(tmp_path / "run")
    at = int(next(folder.checkpoints.glob("step-*")).name.removeprefix("step-"))
    assert [row["step"] for row in folder.read_log("step")] == list(range(1, at + 1))
    assert read_json(folder.provenance)["computed"]["processes"] == 2

    both = RunDir(Path(shutil.copytree(folder.path, tmp_path / "both")))
    failing = ["train", "--resume", str(folder.path)]
    going_on = ["train", "--resume", str(both.path), f"steps={at + 2}"]
    unbroken = ["train", str(CRITTER), "--run", str(tmp_path / "unbroken"), f"steps={at + 2}", *settings]
    command = [sys.executable, "-m", "tests.pipeline.two_ranks", json.dumps([failing, going_on, unbroken])]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\nGPU 1: out of memory. Set fit=true.\n") == 1, done.stderr
    assert not re.findall(r'File ".*limner.*"', done.stderr), "a traceback of ours"
    assert read_json(folder.provenance)["resumed"][0]["step"] == at

    together = load_file(RunDir(tmp_path / "unbroken").adapter)
    stopped = load_file(both.adapter)
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in together.items())
    assert [row["step"] for row in both.read_log("step")] == list(range(1, at + 3))

    lines = Lines()
    run.resume(folder.path, settings={"steps": at + 2}, watch=lines)
    assert any("goes on with processes 1 (was 2): results may differ in the last bits" in line for line in lines.said)
    alone = load_file(folder.adapter)
    apart = sum(float((tensor - together[name]).square().sum()) for name, tensor in alone.items()) ** 0.5
    assert apart < 1e-5 * sum(float(tensor.square().sum()) for tensor in alone.values()) ** 0.5


def test_a_batch_that_cannot_be_split_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        Ranks(0, 2).check(3, 1, 1)
    assert str(caught.value) == (
        "batch=3 (with accumulate=1) cannot be split over 2 processes. Use batch=2 or 4, or one process."
    )
    with pytest.raises(UserError, match="Use batch=4, or one process"):
        Ranks(0, 4).check(1, 2, 1)
    Ranks(0, 2).check(1, 1, 2)  # with a class picture there are two rows
    with pytest.raises(UserError, match="batch=3 .* cannot be split over 4 processes. Use batch=2 or 4"):
        Ranks(0, 4).check(3, 1, 2)


@pytest.mark.parametrize(("rows", "count"), [(4, 2), (5, 2), (1, 2), (3, 4), (8, 3)])
def test_every_row_is_computed_once(rows: int, count: int) -> None:
    shares = [Ranks(i, count).share(rows) for i in range(count)]
    assert [row for share in shares for row in share] == list(range(rows))


def test_alone_nothing_is_asked_of_others() -> None:
    ranks, tensor = Ranks(), torch.ones(2)
    ranks.add([tensor])
    ranks.wait()
    assert tensor.tolist() == [1, 1]
    assert (ranks.any(True), ranks.any(False), ranks.told("here"), first_to_say("x")) == (True, False, "here", True)
    with joined() as joint:
        assert joint == started() == Ranks()


def test_a_fused_backward_is_for_one_process(family: Family) -> None:
    adapter = Full(targets=("*conv_out*",)).attach(family, [SlotSettings(seed=0)])
    slot = Slot("s", Drawn(0), seed=0, steps=2, learning_rate=1e-3)
    fused = AdamW(max_grad_norm=0, fused_backward=True)
    training = Training(family, adapter, [slot], objective=Denoising(), optimizer=fused)
    training.share(Ranks())
    with pytest.raises(UserError, match="fused_backward=true updates each weight before 2 processes"):
        training.share(Ranks(0, 2))


def test_other_verbs_run_in_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in zip(STARTED, ("0", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["limner", "doctor"])
    monkeypatch.setattr("limner.cli.ending.first_to_say", lambda text: True)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "limner doctor: runs in one process. Only train is shared by several.\n"
