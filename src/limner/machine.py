"""What this machine is: versions, processor, memory, and the device and precision to use."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from limner.errors import UserError

PACKAGES = ("limner", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")
COMPILERS = ("g++", "clang++", "c++")
Precision = Literal["auto", "float32", "bfloat16", "float16"]
MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1
"""Settings of glibc's mallopt (malloc.h): how many pieces of memory lie apart; from which size on, and from how much on
free memory is given back, in bytes."""
AS_EVER = {MMAP_MAX: 2**16, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**30}
"""What stands else: where the library would have come to, but that what a step frees is kept for the next one."""


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory and GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "memory_gib": round(memory, 1), "gpu": gpu}  # fmt: skip


def require_compiler(what: str, device: torch.device) -> None:
    """Refuse `what` needs torch.compile where the device has no compiler for what it writes."""
    if device.type == "cuda":
        missing = "" if importlib.util.find_spec("triton") else "Triton, which is not installed"
    else:
        here = [name for name in (os.environ.get("CXX", ""), *COMPILERS) if name and shutil.which(name)]
        missing = "" if here else f"a C++ compiler, and none of {', '.join(COMPILERS)} is installed"
    if missing:
        raise UserError(f"{what}: needs {missing}.", "Install it, or leave it out.")


def name_of(device: torch.device) -> str:
    """Return what computes: the GPU's model, or "cpu" and the like."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def threads() -> int:
    """Return how many threads one operation is shared by on the CPU."""
    return torch.get_num_threads()


def peak_memory_gib() -> float:
    """Return the most memory used since `reset_peak_memory`, in GiB: the GPU's, or without one the process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    if peak := process_memory().get("VmHWM"):
        return peak / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def process_memory() -> dict[str, int]:
    """Return what Linux tells of this process's memory, in bytes: VmHWM (the peak), VmRSS, RssAnon ...; else {}."""
    status = Path("/proc/self/status")
    lines = [line.split() for line in status.read_text().splitlines()] if status.is_file() else []
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def used_gib() -> float:
    """Return the memory in use, in GiB: the GPU's, or without one the process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.memory_allocated() / 2**30, 3)
    return round(psutil.Process().memory_info().rss / 2**30, 3)


def reset_peak_memory() -> None:
    """Begin to measure the peak anew, where the system allows it (Linux, and any GPU)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def watched_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Yield what is filled when this block ends: the peak of memory within it, in bytes; None where nothing tells.

    `working_bytes` is the peak above what was held before; of the process `process_peak_bytes`, all of it, and
    `process_anonymous_bytes`, what is not pages of files.
    """
    seen: dict[str, int | None] = dict.fromkeys(("working_bytes", "process_peak_bytes", "process_anonymous_bytes"))
    reset_peak_memory()
    held, before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0, process_memory()
    yield seen
    if device.type == "cuda":
        seen["working_bytes"] = torch.cuda.max_memory_allocated(device) - held
    elif device.type == "cpu" and before and before["VmHWM"] < 1.02 * before["VmRSS"]:  # else the reset was refused
        after = process_memory()
        peak = max(after["VmHWM"], after["VmRSS"])
        seen["working_bytes"] = max(0, peak - before["VmRSS"])
        seen["process_peak_bytes"] = peak
        seen["process_anonymous_bytes"] = peak - after["RssFile"] - after["RssShmem"]


def free_memory_bytes(device: torch.device) -> int | None:
    """Return how much memory a run could use on a device, None where the device is not here.

    On the CPU that is what the system has available, within a container's limit, and what this process has already.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    own, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no such file, or "max"
        limits = Path("/sys/fs/cgroup")
        used = int((limits / "memory.current").read_text())
        free = min(free, int((limits / "memory.max").read_text()) - used)
    return own + free


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device; a GPU fetches it by itself, while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def swapped_bytes() -> int:
    """Return how much of this process the system has moved to its swap, where it says so (Linux)."""
    return process_memory().get("VmSwap", 0)


def return_freed_memory() -> None:
    """Have the C library give the system back what was freed, where it would keep it for later (Linux's)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Within this block a large piece of memory goes back to the system as soon as it is freed (Linux, glibc).

    Else many that come and go beside others that stay leave holes between these, which stay as well.
    """
    with _allocating({MMAP_THRESHOLD: 2**20}):
        yield


@contextmanager
def freed_for_reuse() -> Iterator[None]:
    """Within this block memory that is freed stays for what comes next (Linux, glibc).

    Else a piece of 32 MiB and more comes anew from the system each time, page by page: a fifth of a VAE's time.
    """
    with _allocating({MMAP_MAX: 0, TRIM_THRESHOLD: 2**30}):
        yield


@contextmanager
def _allocating(settings: Mapping[int, int]) -> Iterator[None]:
    """Within this block the C library allocates by these settings, where they are its own."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None

    def allocate(settings: Mapping[int, int]) -> None:
        for setting, value in settings.items():
            if mallopt:
                mallopt(setting, value)

    allocate(settings)
    try:
        yield
    finally:
        allocate(AS_EVER)


def keep_few_kernels() -> None:
    """Have what lies between torch and oneDNN keep the kernels of one shape, where it would of 1,024 (x86).

    oneDNN keeps them as well, in a twentieth of a GB less for a UNet, and no later. A setting of the user's stays.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # read at the first convolution


@contextmanager
def uncollected() -> Iterator[None]:
    """Within this block, or function, Python looks for no garbage: for where a million objects are made that all stay.

    The libraries' imports are such a place, and take a tenth less so.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: a GPU's, or the system's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class Place:
    """Where a run computes, and in which dtype its base is held."""

    device: torch.device
    dtype: torch.dtype
    note: str = ""
    """What the user should know of the choice."""


def place(device: str, precision: Precision, *, must_be_here: bool = True) -> Place:
    """Return the device and dtype for two settings, each of which may be "auto".

    "auto" takes a GPU where there is one, and bfloat16 on a GPU that computes in it, else float32. One that is not
    here, and need not be, is taken for a GPU of today.
    """
    chosen = _device(device, must_be_here)
    if precision == "float16" and chosen.type == "cpu":
        raise UserError("precision='float16': the CPU has no fast float16.", "Use float32 or bfloat16.")
    is_gpu = chosen.type == "cuda"
    bf16 = is_gpu and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False))
    if precision == "auto":
        return Place(chosen, torch.bfloat16 if bf16 else torch.float32)
    if precision == "bfloat16" and is_gpu and not bf16:
        return Place(
            chosen, torch.float32, "precision=bfloat16: this GPU does not compute in it; float32 takes its place"
        )
    if precision == "float16" and bf16:
        return Place(chosen, torch.float16, "precision=float16 can overflow; this GPU has bfloat16, which cannot")
    return Place(chosen, getattr(torch, precision))


def require_gpu(at: Place, offload: bool) -> None:
    """Refuse to bring layers from the host to a device that is the host."""
    if offload and at.device.type != "cuda":
        raise UserError(f"offload=true: brings the base's layers from the host's memory to a GPU, and this is for "
                        f"{at.device}.", "Leave it out, or set device=cuda.")  # fmt: skip


def _device(name: str, must_be_here: bool) -> torch.device:
    number = int(os.environ.get("LOCAL_RANK", "0"))  # of the processes that torchrun starts, each has a GPU of its own
    if name in ("auto", "cuda") and 0 < torch.cuda.device_count() <= number:
        found = f"{torch.cuda.device_count()} of {os.environ.get('LOCAL_WORLD_SIZE')} processes"
        raise UserError(f"device={name!r}: there are GPUs for {found}.", "Start fewer, or use device=cpu.")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", number)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r}: is not a device.", "Use auto, cpu, cuda, cuda:1 or mps.")
    if name.startswith("cuda") and not must_be_here:
        return torch.device("cuda", number) if name == "cuda" else torch.device(name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device={name!r}: torch finds no CUDA GPU.", "Use device=auto or device=cpu; limner doctor says more."
        )
    if name.startswith("mps") and not torch.backends.mps.is_available():
        raise UserError(f"device={name!r}: torch finds no Apple GPU.", "Use device=auto or device=cpu.")
    if name == "cuda":
        return torch.device("cuda", number)
    wanted = name.partition(":")[2] or "0"
    there = torch.cuda.device_count() if name.startswith("cuda") else 1
    if not wanted.isdecimal() or int(wanted) >= there:
        raise UserError(
            f"device={name!r}: there is no such device.",
            f"Use device=auto{''.join(f', cuda:{n}' for n in range(torch.cuda.device_count()))} or cpu.",
        )
    return torch.device(name)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Within this block take only kernels that give the same bits every time; on a CPU they all do."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.use_deterministic_algorithms(before)
