"""What will work on this machine: real kernels per device, memory, disk, packages, the hub; in plain words"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from limner import machine
from limner.files import default_cache

GIB = 2**30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 0.1
"""How far a kernel's result may be from float32's on the CPU, as a share of its size; bfloat16 rounds to 0.004."""
TIMED_SIDE = {"cpu": 512}
"""Side of the matrices that are multiplied for the speed; 4096 on a GPU."""
OPTIONAL = {
    "bitsandbytes": ("bitsandbytes", "8-bit optimizers", "limner[lowmem]"),
    "torchao": ("torchao", "low-precision optimizers", "limner[lowmem]"),
    "prodigyopt": ("prodigyopt", "the Prodigy optimizer", "prodigyopt"),
    "schedulefree": ("schedulefree", "schedule-free optimizers", "schedulefree"),
    "pillow-heif": ("pillow_heif", "HEIC pictures", "limner[heif]"),
    "webdataset": ("webdataset", "pictures in tar shards", "limner[data]"),
    "datasets": ("datasets", "Hugging Face data sets", "limner[data]"),
}
"""Package -> the module that is imported, what it is for, what to install."""
STEP_TFLOP = 1.79
"""A training step of LoRA on SD 1.5: 512 px, batch 1, counted."""
KERNEL_SHARE = 0.5
"""What a whole step reaches of a plain matrix product's speed, roughly."""


@dataclass(frozen=True)
class Method:
    """A way of training and the memory that it takes, roughly: batch 1, the base in 16 or in 32 bits."""

    name: str
    half_gib: float
    full_gib: float
    least: str
    """How low it can be brought, and by what."""


METHODS = (
    Method("SD 1.5, 512 px: LoRA, textual inversion", 2.9, 5.5, "2.0 with gradient checkpointing"),
    Method("SD 1.5, 512 px: full DreamBooth", 14.5, 16.0, "8 with an 8-bit optimizer and checkpointing"),
    Method("SDXL, 1024 px: LoRA", 13.0, 25.0, "6.5 with gradient checkpointing"),
    Method("SDXL, 1024 px: full DreamBooth", 47.0, 55.0, "10 with Adafactor fused into backward"),
)
"""Sums of weights, gradients, moments and activations; the 16-bit LoRA and the least figures are published ones."""


@dataclass(frozen=True)
class Device:
    """A device and what really ran on it."""

    name: str
    """As the setting `device` takes it."""
    model: str
    memory_free_gib: float
    memory_total_gib: float
    kernels: dict[str, str]
    """Number format -> "works", or which kernel failed and how."""
    tflops: dict[str, float]
    """Measured speed of a matrix product by number format, in 10^12 operations per second."""


@dataclass(frozen=True)
class Report:
    """Everything that the doctor found."""

    versions: dict[str, str]
    devices: list[Device]
    precision: str
    """The number format that precision=auto takes, on which device, and why."""
    packages: dict[str, str]
    """Optional package -> "works", "not installed", or the reason why it does not load."""
    disk_free_gib: dict[str, float]
    """Folder -> free room."""
    hub: str
    methods: dict[str, str]
    """Method -> whether it fits."""
    problems: list[str]
    """What should be mended, each with what to do."""


def examine(run_folder: Path = Path("runs")) -> Report:
    """Run kernels on every device, import every optional package, and say what follows from it."""
    devices = [_examine_device(name) for name in _device_names()]
    at = machine.place("auto", "auto")
    chosen = next(device for device in devices if device.name.partition(":")[0] == at.device.type)
    packages = {package: try_import(OPTIONAL[package][0]) for package in OPTIONAL}
    folders = {"runs": run_folder, "cache": default_cache(), "hub cache": _hub_cache()}
    return Report(
        versions=machine.versions(),
        devices=devices,
        precision=_why(at, chosen),
        packages=packages,
        disk_free_gib={f"{name} ({folder})": _free_gib(folder) for name, folder in folders.items()},
        hub=_hub(),
        methods=dict(_what_fits(chosen, at.dtype)),
        problems=[*_gpu_problems(), *_device_problems(devices), *_package_problems(packages)],
    )


def lines(report: Report) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield ", ".join(f"{name} {version}" for name, version in report.versions.items())
    for device in report.devices:
        yield (
            f"\n{device.name}: {device.model}, {device.memory_free_gib:.1f} of {device.memory_total_gib:.1f} GiB "
            "of memory free"
        )
        for dtype, result in device.kernels.items():
            speed = f", {device.tflops[dtype]:.3g} TFLOP/s" if dtype in device.tflops else ""
            yield f"  {dtype:<10}{result}{speed}"
    yield f"\nprecision=auto: {report.precision}"
    yield "\nfits (estimates, batch 1):"
    yield from (f"  {method:<50}{verdict}" for method, verdict in report.methods.items())
    yield "\noptional packages:"
    yield from (f"  {name:<14}{OPTIONAL[name][1]:<28}{result}" for name, result in report.packages.items())
    yield "\nfree on disk:"
    yield from (f"  {free:7.1f} GiB  {folder}" for folder, free in report.disk_free_gib.items())
    yield f"\nhub: {report.hub}"
    yield "\n" + ("to mend:" if report.problems else "nothing to mend")
    yield from (f"  {problem}" for problem in report.problems)


def try_import(module: str) -> str:
    """Import a module for real, whatever it prints; return "works", "not installed" or why it does not load."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"does not load: {error}"
    except Exception as error:  # a broken package can fail in any way
        return f"does not load: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return "works"


def unsupported_gpu(name: str, capability: tuple[int, int], built_for: Sequence[str], version: str) -> str | None:
    """Return what to do about a GPU that this torch has no kernels for, None when it has.

    `built_for` is torch's list: "sm_86" runs on 8.6 and later 8.x, "compute_90" is compiled for anything from 9.0 on.
    """
    have = capability[0] * 10 + capability[1]
    kinds = [(kind, int(number.rstrip("af"))) for kind, _, number in (arch.partition("_") for arch in built_for)]
    if any(n <= have and (kind == "compute" or n // 10 == have // 10) for kind, n in kinds):
        return None
    newer = all(number < have for _, number in kinds)
    wheel = "cu128" if newer else "cu126"
    more = " or a newer one" if newer else ", the last one with kernels for older cards"
    return (
        f"GPU {name} (sm_{have}) is not supported by torch {version} (built for {', '.join(built_for)}). Install: "
        f"pip install --upgrade torch --index-url https://download.pytorch.org/whl/{wheel}{more}"
    )


def _device_names() -> list[str]:
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _examine_device(name: str) -> Device:
    kernels = {_short(dtype): try_kernels(name, dtype) for dtype in DTYPES}
    speeds = {_short(dtype): _tflops(name, dtype) for dtype in DTYPES if kernels[_short(dtype)] == "works"}
    host = psutil.virtual_memory()
    free, total = host.available, host.total
    model = machine.hardware()["system"] + f", {os.cpu_count()} cores"
    if name.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(name)
        model = torch.cuda.get_device_name(name)
    return Device(name, model, free / GIB, total / GIB, kernels, speeds)


def try_kernels(device: str, dtype: torch.dtype) -> str:
    """Run each kernel forward and backward; return "works", or the first that fails or comes out wrong."""
    for name, kernel in KERNELS.items():
        try:
            there = _run(kernel, device, dtype)
            reference = _run(kernel, "cpu", torch.float32)
        except (RuntimeError, NotImplementedError) as error:
            return f"does not work: {name}: {str(error).splitlines()[0]}"
        for found, wanted in zip(there, reference, strict=True):
            error = float((found - wanted).norm() / wanted.norm())
            if not error <= TOLERANCE:  # not a number fails too
                return f"does not work: {name} is wrong by {error:.0%}"
    return "works"


def _matmul(x: Tensor) -> Tensor:
    return x.flatten(1) @ x.flatten(1).T


def _convolution(x: Tensor) -> Tensor:
    return F.conv2d(x, x[:4, :, :3, :3], padding=1)


def _attention(x: Tensor) -> Tensor:
    heads = x.flatten(2).transpose(1, 2).unflatten(2, (2, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "matrix product": _matmul, "convolution": _convolution, "attention": _attention,
}  # fmt: skip


def _run(kernel: Callable[[Tensor], Tensor], device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a kernel's result and its gradient, float32, on the CPU."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(8, 16, 16, 16, generator=draws).to(device, dtype).requires_grad_()
    result = kernel(x)
    result.float().square().mean().backward()
    assert x.grad is not None
    return result.detach().float().cpu(), x.grad.float().cpu()


def _tflops(device: str, dtype: torch.dtype) -> float:
    """Return the speed of a matrix product, the best of three."""
    side = TIMED_SIDE.get(device, 4096)
    x = torch.randn(side, side, device=device, dtype=dtype)
    best = min(_seconds(x) for _ in range(3))
    return 2 * side**3 / best / 1e12


def _seconds(x: Tensor) -> float:
    begun = time.perf_counter()
    (x @ x).flatten()[0].item()  # waits for the device
    return time.perf_counter() - begun


def _why(at: machine.Place, device: Device) -> str:
    dtype = _short(at.dtype)
    if at.dtype == torch.bfloat16:
        return f"{dtype} on {device.name}, which computes in it"
    if device.name == "cpu":
        half = device.kernels["bfloat16"] == "works"
        return f"{dtype} on the CPU" + ("; precision=bfloat16 works here and halves the base's memory" if half else "")
    return f"{dtype} on {device.name}, which has no bfloat16; precision=float16 halves the base's memory"


def _what_fits(device: Device, dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    for method in METHODS:
        needed = method.full_gib if dtype == torch.float32 else method.half_gib
        fits = needed <= device.memory_free_gib
        lower = f"{method.least}; in bfloat16 {method.half_gib:g}" if dtype == torch.float32 else method.least
        yield (
            method.name,
            f"{'fits' if fits else 'does not fit as it is'}: about {needed:g} GiB in {_short(dtype)} (least: {lower})",
        )
    speed = device.tflops.get(_short(dtype))
    if speed:
        seconds = STEP_TFLOP / (speed * KERNEL_SHARE)
        yield "SD 1.5, 512 px: a step of LoRA", f"about {seconds:.3g} s on {device.name} (from its speed above)"


def _gpu_problems() -> Iterator[str]:
    version = str(torch.__version__)
    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
            yield (
                f"An NVIDIA GPU is here, and torch {version} cannot use it. Install: pip install --upgrade torch "
                "--index-url https://download.pytorch.org/whl/cu128, or a newer driver."
            )
        return
    for i in range(torch.cuda.device_count()):
        name, capability = f"{i} {torch.cuda.get_device_name(i)}", torch.cuda.get_device_capability(i)
        found = unsupported_gpu(name, capability, torch.cuda.get_arch_list(), version)
        if found:
            yield found


def _device_problems(devices: Sequence[Device]) -> Iterator[str]:
    for device in devices:
        if device.kernels["float32"] != "works":
            yield f"{device.name}: float32 {device.kernels['float32']}. Use another device=, or install torch again."


def _package_problems(packages: dict[str, str]) -> Iterator[str]:
    for name, result in packages.items():
        if result.startswith("does not load"):
            yield f"{name} (for {OPTIONAL[name][1]}) {result}. Install it again: pip install '{OPTIONAL[name][2]}'"


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _hub() -> str:
    from huggingface_hub.constants import is_offline_mode

    models = [p.name.removeprefix("models--").replace("--", "/") for p in sorted(_hub_cache().glob("models--*"))]
    held = ", ".join(models) or "no model"
    mode = "switched off (HF_HUB_OFFLINE=1): only its cache is used" if is_offline_mode() else "asked when needed"
    return f"{mode}; the cache {_hub_cache()} holds {held}"


def _free_gib(folder: Path) -> float:
    """Return the free room where a folder is or would be made."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free / GIB


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values."""
    from dataclasses import asdict

    return asdict(report)
