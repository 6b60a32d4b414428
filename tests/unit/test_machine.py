"""Device and number format: what a GPU can and cannot, told by what torch says of it; when garbage is looked for."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from limner.errors import UserError
from limner.families.load import load
from limner.machine import Precision, place, uncollected


def with_gpu(monkeypatch: pytest.MonkeyPatch, *, bf16: bool, count: int = 1) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


@pytest.mark.parametrize(
    ("precision", "bf16", "dtype", "note"),
    [
        ("auto", True, torch.bfloat16, ""),
        ("auto", False, torch.float32, ""),
        ("bfloat16", True, torch.bfloat16, ""),
        ("bfloat16", False, torch.float32, "float32 takes its place"),
        ("float16", True, torch.float16, "this GPU has bfloat16"),
        ("float16", False, torch.float16, ""),
        ("float32", True, torch.float32, ""),
    ],
)
def test_number_formats_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, bf16: bool, dtype: torch.dtype, note: str
) -> None:
    with_gpu(monkeypatch, bf16=bf16)
    at = place("cuda", precision)
    assert (at.dtype, at.device.type) == (dtype, "cuda")
    assert note in at.note
    assert bool(note) == bool(at.note)


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, bf16=True, count=2)
    assert place("cuda:1", "auto").device == torch.device("cuda:1")
    with pytest.raises(UserError, match="device='cuda:7': there is no such device. Use device=auto, cuda:0, cuda:1 or"):
        place("cuda:7", "auto")
    with pytest.raises(UserError, match="there is no such device"):
        place("cuda:first", "auto")


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_base_is_loaded_with_the_collector_as_it_was(random_base: Path, is_wanted: bool) -> None:
    (gc.enable if is_wanted else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
            load(str(random_base), dtype=torch.float32, device="cpu")
            assert not gc.isenabled(), "one within another"
        assert gc.isenabled() == is_wanted
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("given", "machine", "kept"), [(None, "x86_64", "1"), (None, "aarch64", None), ("7", "x86_64", "7")]
)
def test_few_kernels_are_kept_where_that_costs_nothing(
    given: str | None, machine: str, kept: str | None, random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", given or "")
    if given is None:
        monkeypatch.delenv("LRU_CACHE_CAPACITY")
    monkeypatch.setattr("platform.machine", lambda: machine)
    load(str(random_base), dtype=torch.float32, device="cpu")
    assert os.environ.get("LRU_CACHE_CAPACITY") == kept


def test_the_cpu_takes_float32_by_itself() -> None:
    assert place("cpu", "auto").dtype == torch.float32
