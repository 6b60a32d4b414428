"""The doctor: kernels that really run, packages that are really imported, and what follows, in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner import doctor
from limner.cli import main
from limner.doctor import Device, examine, lines, try_import, try_kernels, unsupported_gpu
from limner.machine import Place

BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return examine()


def test_the_cpu_computes_in_float32_and_bfloat16(report: doctor.Report) -> None:
    cpu = report.devices[-1]
    assert cpu.name == "cpu"
    assert cpu.kernels["float32"] == cpu.kernels["bfloat16"] == "works"
    assert 0 < cpu.memory_free_gib <= cpu.memory_total_gib
    assert cpu.tflops["float32"] > 0


def test_a_kernel_that_gives_wrong_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Tensor) -> Tensor:
        return x.flatten(1) * (1.5 if x.dtype == torch.bfloat16 else 1)

    def failing(x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            raise RuntimeError("no kernel\nand more")
        return x

    monkeypatch.setattr(doctor, "KERNELS", {"attention": failing, "matrix product": broken})
    assert try_kernels("cpu", torch.float32) == "works"
    assert try_kernels("cpu", torch.bfloat16) == "does not work: matrix product is wrong by 50%"
    assert try_kernels("cpu", torch.float16) == "does not work: attention: no kernel"


def test_not_a_number_does_not_pass_for_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "KERNELS", {"x": lambda x: x * (float("nan") if x.dtype == torch.float16 else 1)})
    assert try_kernels("cpu", torch.float16) == "does not work: x is wrong by nan%"


@pytest.mark.parametrize(
    ("capability", "built_for", "supported"),
    [
        ((8, 6), BUILT_FOR, True),
        ((8, 9), BUILT_FOR, True),  # code for 8.6 runs on every later 8.x
        ((12, 0), BUILT_FOR, False),
        ((12, 0), [*BUILT_FOR, "compute_90"], True),  # compiled on the card itself
        ((7, 0), BUILT_FOR, False),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_which_cards_a_torch_has_kernels_for(
    capability: tuple[int, int], built_for: list[str], supported: bool
) -> None:
    assert (unsupported_gpu("0 X", capability, built_for, "2.5.1+cu121") is None) == supported


def test_a_card_without_kernels_is_told_what_to_install() -> None:
    assert unsupported_gpu("0 RTX 5090", (12, 0), BUILT_FOR, "2.5.1+cu121") == (
        "GPU 0 RTX 5090 (sm_120) is not supported by torch 2.5.1+cu121 (built for sm_75, sm_80, sm_86, sm_90). "
        "Install: pip install --upgrade torch --index-url https://download.pytorch.org/whl/cu128 or a newer one"
    )
    old = unsupported_gpu("0 GTX 970", (5, 2), BUILT_FOR, "2.13.0+cu130")
    assert old is not None
    assert old.endswith("/cu126, the last one with kernels for older cards")


def test_packages_are_really_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "noisy_one.py").write_text("print('hello')")
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('libcuda.so is missing\\nand more')")
    (tmp_path / "lacking_one.py").write_text("import nothing_of_that_name")
    assert try_import("noisy_one") == "works"
    assert try_import("broken_one") == "does not load: RuntimeError: libcuda.so is missing"
    assert try_import("lacking_one") == "does not load: No module named 'nothing_of_that_name'"
    assert try_import("nothing_of_that_name") == "not installed"


def test_a_broken_package_is_a_thing_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_two.py").write_text("raise RuntimeError('no CUDA')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "OPTIONAL", {"bitsandbytes": ("broken_two", "8-bit optimizers", "limner[lowmem]")})
    packages = {"bitsandbytes": try_import(doctor.OPTIONAL["bitsandbytes"][0])}
    assert list(doctor._package_problems(packages)) == [
        "bitsandbytes (for 8-bit optimizers) does not load: RuntimeError: no CUDA. "
        "Install it again: pip install 'limner[lowmem]'"
    ]


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("cuda:0", torch.bfloat16, "bfloat16 on cuda:0, which computes in it"),
        ("cuda:0", torch.float32, "which has no bfloat16; precision=float16 halves the base's memory"),
        ("cpu", torch.float32, "precision=bfloat16 works here and halves the base's memory"),
    ],
)
def test_the_precision_is_chosen_with_a_reason(device: str, dtype: torch.dtype, words: str) -> None:
    kernels = {"float32": "works", "bfloat16": "works", "float16": "works"}
    shown = Device(device, "X", 8.0, 8.0, kernels, {"float32": 1.0, "bfloat16": 1.0})
    assert words in doctor._why(Place(torch.device(device.partition(":")[0]), dtype), shown)


@pytest.mark.parametrize(("free_gib", "fitting"), [(2.0, 0), (4.0, 1), (15.0, 3), (80.0, 4)])
def test_what_fits_follows_from_free_memory(free_gib: float, fitting: int) -> None:
    device = Device("cuda:0", "X", free_gib, 80.0, {"bfloat16": "works"}, {"bfloat16": 100.0})
    verdicts = dict(doctor._what_fits(device, torch.bfloat16))
    assert sum(verdict.startswith("fits: ") for verdict in verdicts.values()) == fitting
    assert verdicts["SD 1.5, 512 px: a step of LoRA"].startswith("about 0.0358 s on cuda:0")


def test_the_text_says_all_of_it(report: doctor.Report) -> None:
    text = "\n".join(lines(report))
    for part in ("torch", "cpu: ", "precision=auto: ", "SDXL", "bitsandbytes", "free on disk", "HF_HUB_OFFLINE=1"):
        assert part in text


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["limner", "doctor", "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["devices"][-1]["name"] == "cpu"
    assert shown["precision"].startswith("float32 on the CPU")
