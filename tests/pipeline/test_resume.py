"""Stopped and continued equals unbroken, bit for bit: every method, stop, number of parts, workers and processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limner.families.family import Family
from limner.families.load import load
from limner.families.source import ASSETS
from limner.prepare.ahead import fetched_ahead
from limner.prepare.prepared import Prepared
from limner.types import Batch
from tests.pipeline.drawn import Drawn
from tests.pipeline.matrix import CASES, STEPS, STOPS, Ended, prepared, take

LOSSES = ("loss", "instance_loss", "prior_loss", "grad_norm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of five pictures of a subject, with tags to be shuffled, and of five others of its class."""
    folder = tmp_path_factory.mktemp("matrix")
    shutil.copytree(ASSETS / "demo" / "critter", folder / "subject")
    shutil.copytree(ASSETS / "demo" / "robot", folder / "class")
    for picture in (folder / "subject").glob("*.png"):
        picture.with_suffix(".txt").write_text(f"<critter>, a critter, number {picture.stem}, on a hill, in the sun")
    return folder


@pytest.fixture(scope="module")
def in_two(random_base: Path, pictures: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Have two processes take every case together, and return how to read what they ended with."""
    out = tmp_path_factory.mktemp("in-two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "LIMNER_CACHE": str(out / "cache")}  # fmt: skip
    command = [sys.executable, "-m", "tests.pipeline.matrix", str(random_base), str(pictures), str(out)]
    process = subprocess.Popen(command, cwd=root, env=shared, stderr=subprocess.PIPE, text=True)

    def read(case: str) -> Ended:
        errors = process.communicate()[1] if process.returncode is None else ""
        assert process.returncode == 0, errors
        told = json.loads((out / f"{case}.json").read_text())
        return Ended(load_file(out / f"{case}.safetensors"), told["numbers"], told["steps"], told["ids"])

    yield read
    process.kill()
    process.wait()


def same(a: Ended, b: Ended) -> bool:
    """Return whether two trainings ended alike, to the last bit, and told the same."""
    told = [json.loads(json.dumps([ended.numbers, ended.steps, ended.ids])) for ended in (a, b)]
    bits = a.tensors.keys() == b.tensors.keys() and all(torch.equal(t, b.tensors[n]) for n, t in a.tensors.items())
    return bits and told[0] == told[1]


@pytest.fixture(scope="module")
def data(random_base: Path, pictures: Path) -> Prepared:
    """Cache the pictures once for all cases."""
    return prepared(load(str(random_base), dtype=torch.float32, device="cpu"), pictures)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_stopped_and_shared_equal_unbroken(
    name: str, accumulate: int, family: Family, data: Prepared, tmp_path: Path, in_two: Callable[[str], Ended]
) -> None:
    """Bit for bit: with stops, with threads that fetch ahead, and both again in two processes.

    Two processes see the same pictures, noise and learning rates as one; sums of floats in another order round
    differently, so their weights are those of one process to six digits, and the same bits in both.
    """
    alone = take(family, name, data, accumulate=accumulate, workers=0, folder=tmp_path / "unbroken")
    stopped = take(family, name, data, accumulate=accumulate, workers=2, stops=STOPS, folder=tmp_path / "stopped")
    assert same(stopped, alone)
    shared = in_two(f"{name}-{accumulate}-unbroken-0")
    for other in ("unbroken-1", *(("stopped-0", "stopped-1") if accumulate == 2 else ())):
        assert same(in_two(f"{name}-{accumulate}-{other}"), shared), other
    assert shared.ids == [list(ids) for ids in alone.ids]
    apart, size = 0.0, 0.0
    for key, tensor in alone.tensors.items():
        if "|weight|" in key:
            apart += float((shared.tensors[key] - tensor).double().square().sum())
            size += float(tensor.double().square().sum())
    assert apart**0.5 < 1e-6 * size**0.5
    for (_, mine), (_, theirs) in zip(alone.steps, shared.steps, strict=True):
        for one, two in zip(mine, theirs, strict=True):
            assert (one["learning_rates"], one["skipped"]) == (two["learning_rates"], two["skipped"])
            assert [one[k] for k in LOSSES] == pytest.approx([two[k] for k in LOSSES], rel=1e-5, abs=1e-9, nan_ok=True)
    skipped = [slots[0]["skipped"] for _, slots in alone.steps]
    assert any(skipped) == (name == "scale_too_large")
    assert not skipped[-1]
    assert len(alone.ids) == STEPS * accumulate * len(CASES[name].ranks)


@pytest.mark.parametrize("name", ["lora", "textual_inversion"])
def test_two_text_encoders_stopped_twice_equal_unbroken(
    name: str, random_xl: Path, pictures: Path, tmp_path: Path
) -> None:
    family = load(str(random_xl), dtype=torch.float32, device="cpu")
    data = prepared(family, pictures)
    alone = take(family, name, data, accumulate=1, workers=0, folder=tmp_path / "unbroken")
    stopped = take(family, name, data, accumulate=1, workers=0, stops=STOPS, folder=tmp_path / "stopped")
    assert same(stopped, alone)
    for encoder in ("text_encoder.", "text_encoder_2."):
        assert any(encoder in key for key in alone.tensors), f"{encoder} learns nothing"


def test_what_goes_wrong_in_a_thread_is_raised_where_it_is_asked_for() -> None:
    class Torn(Drawn):
        def batch(self, step: int, *, seed: int) -> Batch:
            if step == 2:
                raise OSError("the disk is gone")
            return super().batch(step, seed=seed)

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"), fetched_ahead(Torn(0), 2) as source:  # noqa: PT012
        for step in range(2):
            assert torch.equal(source.batch(step, seed=1).moments, Drawn(0).batch(step, seed=1).moments)
        source.batch(2, seed=1)
    assert threading.active_count() == before


def test_threads_fetch_ahead_and_leave_with_the_block() -> None:
    asked: list[int] = []

    class Asked(Drawn):
        def batch(self, step: int, *, seed: int) -> Batch:
            asked.append(step)
            return super().batch(step, seed=seed)

    with fetched_ahead(Asked(0), 3) as source:
        source.batch(5, seed=1)
        source.batch(7, seed=1)  # not the next one: what was fetched for nothing is dropped
        assert any(thread.name.startswith("pictures") for thread in threading.enumerate())
    assert {5, 6, 7} <= set(asked) <= set(range(5, 11))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]
