"""What loading a base costs: peak memory, anonymous and in all, and seconds; Limner beside plain diffusers (Linux)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import select
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PARTS = ("unet", "text_encoder", "vae")
EVERY_S = 0.002
COLUMNS = ("loader", "dtype", "loaded", "peak anon", "peak total", "total/loaded", "after", "CPU s", "s")


def measure(base: str, dtypes: list[str], rounds: int) -> None:
    """Print one row per loader, dtype and round, each in a process of its own."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "safetensors"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {torch.get_num_threads()} threads, {versions}")
    print("MB above what the process held before; `after` is what stays when loading has ended")
    print("".join(f"{name:>14}" for name in COLUMNS))
    for _ in range(rounds):
        for dtype in dtypes:
            for loader in LOADERS:
                row = child(loader, base, dtype)
                cells = [loader, dtype, *(f"{value:.0f}" for value in row[:3]), f"{row[2] / row[0]:.2f}",
                         f"{row[3]:.0f}", *(f"{value:.1f}" for value in row[4:])]  # fmt: skip
                print("".join(f"{cell:>14}" for cell in cells), flush=True)


def child(loader: str, base: str, dtype: str) -> tuple[float, ...]:
    """Watch one loading from outside; return loaded, peak anonymous, peak total, total after (MB), CPU s and s."""
    command = [sys.executable, "-m", "benchmarks.full_size_loading", loader, base, dtype]
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # its libraries are imported
        before = memory(process.pid)
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak starts from here
        process.stdin.write("go\n")
        process.stdin.flush()
        anonymous = before["RssAnon"]
        while not select.select([process.stdout], [], [], EVERY_S)[0]:
            anonymous = max(anonymous, memory(process.pid)["RssAnon"])
        after = memory(process.pid)
        done = json.loads(process.stdout.readline())
        process.stdin.close()
    return (
        done["loaded_bytes"] / 1e6, anonymous - before["RssAnon"], after["VmHWM"] - before["VmRSS"],
        after["VmRSS"] - before["VmRSS"], done["cpu_s"], done["s"],
    )  # fmt: skip


def memory(pid: int) -> dict[str, float]:
    """Return a process's memory in MB: VmRSS, its peak VmHWM, and the anonymous part of it, RssAnon."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    rows = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM", "RssAnon")))
    return {row[0].rstrip(":"): int(row[1]) * 1024 / 1e6 for row in rows}


def load_with_limner(base: str, dtype: torch.dtype) -> list[Any]:
    """Return the modules as Limner loads them, fingerprints included."""
    from limner.families.load import load

    family = load(base, dtype=dtype, device="cpu")
    return [family.vae, *family.modules.values()]


def load_with_diffusers(base: str, dtype: torch.dtype) -> list[Any]:
    """Return the modules as the stock pipeline loads them."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    if Path(base).is_file():
        from limner.families.source import ASSETS

        pipe = StableDiffusionPipeline.from_single_file(base, config=str(ASSETS / "sd15"), dtype=dtype)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(base, dtype=dtype)
    return [getattr(pipe, part) for part in PARTS]


LOADERS: dict[str, Callable[[str, torch.dtype], list[Any]]] = {
    "limner": load_with_limner,
    "diffusers": load_with_diffusers,
}


def be_child(loader: str, base: str, dtype: str) -> None:
    """Import, wait for the word, load, say what was loaded, wait for the end."""
    import accelerate  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from diffusers.loaders import single_file_utils  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    import limner.families.load  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    modules = LOADERS[loader](base, getattr(torch, dtype))
    for weight in (p for module in modules for p in module.parameters()):
        weight.view(-1).view(torch.uint8)[::4096].sum()  # diffusers leaves a fitting file mapped until it is used
    spent = {"s": time.perf_counter() - begun, "cpu_s": time.process_time() - begun_cpu}
    loaded = sum(p.nbytes for module in modules for p in module.parameters())
    print(json.dumps({"loaded_bytes": loaded, **spent}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    be_child(*sys.argv[1:])
