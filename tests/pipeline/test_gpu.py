"""What only an NVIDIA GPU can show: `pytest -m gpu tests/pipeline/test_gpu.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from limner.families.family import Family
from limner.families.load import load
from limner.seeds import Draws
from limner.train.checkpoint import load_checkpoint, save_checkpoint
from limner.train.company import Company
from limner.train.recorded import CudaGraph
from tests.pipeline.conftest import Result
from tests.unit.train.runs import Buckets, apart, told, training, weights

pytestmark = pytest.mark.gpu


def graph() -> CudaGraph:
    return CudaGraph(torch.device("cuda", 0))


@pytest.fixture
def gpu_family(random_base: Path) -> Family:
    """Load the random base on the GPU, float32, where kernels round little."""
    return load(str(random_base), dtype=torch.float32, device="cuda:0")


@contextmanager
def no_sync() -> Iterator[None]:
    """Within this block whatever makes the host wait for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("ranks", [[4], [4, 2, 3]], ids=["N=1", "N=3"])
def test_a_graph_gives_what_eager_steps_give(gpu_family: Family, ranks: list[int]) -> None:
    """With the same draws, which are then both made on the GPU."""
    eager = training(gpu_family, ranks)
    eager.passes.draws = Draws(gpu_family.device)
    expected = told(eager)
    recorded = training(gpu_family, ranks, recorder=graph)
    assert told(recorded) == expected
    assert apart(weights(recorded), weights(eager)) < 1e-3


def test_a_graph_for_each_bucket(gpu_family: Family) -> None:
    eager = training(gpu_family, [2], sources=[Buckets(0)])
    eager.passes.draws = Draws(gpu_family.device)
    expected = told(eager)
    recorded = training(gpu_family, [2], sources=[Buckets(0)], recorder=graph)
    assert told(recorded) == expected
    assert apart(weights(recorded), weights(eager)) < 1e-3


def test_a_company_in_one_graph(gpu_family: Family) -> None:
    ends = []
    for recorder in (None, graph):
        members = [training(gpu_family, [rank]) for rank in (4, 2)]
        for member in members:
            member.adapter.detach()
            member.recorder = recorder
        company = Company(members)
        company._passes.draws = Draws(gpu_family.device)
        for _ in range(4):
            company.step()
        company.part()
        ends.append([weights(member)[0] for member in members])
    assert apart(ends[1], ends[0]) < 1e-3


def test_resumed_is_unbroken_bit_for_bit(gpu_family: Family, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        unbroken = training(gpu_family, [3], recorder=graph)
        for _ in range(3):
            unbroken.step()
        checkpoint = save_checkpoint(unbroken, tmp_path, keep=1)
        told(unbroken)
        resumed = training(gpu_family, [3], recorder=graph)
        load_checkpoint(resumed, checkpoint)
        told(resumed)
    finally:
        torch.use_deterministic_algorithms(False)
    assert apart(weights(resumed), weights(unbroken)) == 0


@pytest.mark.parametrize("ranks", [[4], [4, 2]], ids=["N=1", "N=2"])
def test_no_pass_waits_for_the_gpu(gpu_family: Family, ranks: list[int]) -> None:
    """From the batches on the host to the gradients, eagerly; and a whole step that is played."""
    eager = training(gpu_family, ranks)
    eager.step()
    turns = eager.turns()
    with no_sync():
        eager.passes._run(turns)
    eager.adapter.detach()
    recorded = training(gpu_family, ranks, recorder=graph)
    recorded.step()
    turns = recorded.turns()
    way = recorded._recorded
    assert way
    rows = [recorded.passes.lay([turn.batches[0] for turn in turns])]
    (recording,) = way._recordings.values()
    with no_sync():
        way._flat.begin(turns, recorded.training)
        way._fill(recording, rows, turns)
        recording.recorder.play()
    recorded.adapter.detach()


@pytest.mark.parametrize("how", ["eager", "graph"])
def test_compiled_gives_what_eager_steps_give(random_base: Path, root: Path, how: str) -> None:
    words = ["-m", "tests.unit.train.compiling", str(random_base), "cuda:0", "inductor", how]
    told = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1])["apart"] < 1e-2


def test_train_and_resume_with_a_graph(run_limner: Callable[..., Result], root: Path, tmp_path: Path) -> None:
    pictures = root / "src" / "limner" / "assets" / "demo" / "critter"
    words = ["train", pictures, "--recipe", "lora", "base=tiny", "device=cuda", "fast=graph", "deterministic=true",
             "steps=6", "checkpoint.every_steps=3", "pictures.class_noun=critter"]  # fmt: skip
    assert run_limner(*words, "--run", tmp_path / "whole")[0] == 0
    assert run_limner(*words[:-3], "steps=3", *words[-2:], "--run", tmp_path / "part")[0] == 0
    assert run_limner("train", "--resume", tmp_path / "part", "steps=6")[0] == 0
    files = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]
