"""Check and cache many pictures with kill -9 in the middle: `python -m benchmarks.data.large_set [--out FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import redirect_stdout
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from limner.families.load import load, sketch
from limner.pictures.spec import Pictures
from limner.prepare import look
from limner.prepare.check import check_pictures
from limner.prepare.encode import prepare

SHARD = 10_000
"""Pictures per folder."""


def make_pictures(folder: Path, number: int) -> None:
    """Write `number` small captioned pictures, all different."""
    for i in range(number):
        place = folder / f"{i // SHARD:03d}"
        if i % SHARD == 0:
            place.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(i)
        coarse = Image.fromarray(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(place / f"{i:06d}.jpg", quality=90)
        (place / f"{i:06d}.txt").write_text(f"picture {i % 50}", encoding="utf-8")


def work(folder: Path, cache: Path, base: str, resolution_px: int, killed_in: str = "", killed_at: int = 0) -> None:
    """Check and cache everything in one process, and print what that took as JSON.

    A very small VAE stands in for the base's: what is measured is everything else. The process is killed (-9) where the
    count `killed_in` comes to `killed_at`.
    """
    counts = {"decoded_to_check": 0, "encoded": 0}
    decode = look.decode_bytes

    def count(what: str, more: int) -> None:
        counts[what] += more
        if what == killed_in and counts[what] >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(*arguments: object, **named: object) -> object:
        count("decoded_to_check", "checked" not in counts)
        return decode(*arguments, **named)  # pyright: ignore[reportArgumentType]

    look.decode_bytes = counting  # pyright: ignore[reportAttributeAccessIssue]
    spec = Pictures(max_upscale=4.0)
    begun = time.perf_counter()
    folders = sorted(folder.iterdir())
    checked = check_pictures(folders, spec, resolution_px=resolution_px, cache=cache)
    counts["checked"] = len(checked.examples)
    print(json.dumps(counts), flush=True)
    check_s = time.perf_counter() - begun
    family = load(base, dtype=torch.float32, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a model so small only waits for a second one
    small = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
    )
    family.vae, family.identity = small.eval().to(family.device), {**family.identity, "vae": "small"}
    encode = family.encode_pixels

    def encoding(pixels: torch.Tensor) -> torch.Tensor:
        count("encoded", len(pixels))
        return encode(pixels)

    family.encode_pixels = encoding
    begun = time.perf_counter()
    prepared = prepare(checked, family, spec=spec, cache=cache, batch=4)
    prepare_s = time.perf_counter() - begun
    prepared.batch(0, seed=0)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = {"check_s": round(check_s, 2), "prepare_s": round(prepare_s, 2), "peak_mib": round(peak_mib)}
    print(json.dumps({**counts, **times, "note": prepared.notes[0], "fingerprint": prepared.fingerprint}))


def looks_kept(cache: Path) -> int:
    """Return how many pictures' facts are on disk."""
    file = cache / "looks.sqlite"
    if not file.is_file():
        return 0
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60) as database:
            return database.execute("SELECT count(*) FROM looks").fetchone()[0]
    except sqlite3.OperationalError:  # the table is not made yet
        return 0


def entries_kept(cache: Path) -> int:
    """Return how many moments are on disk."""
    return sum(1 for _ in (cache / "moments").rglob("*.safetensors"))


def main() -> None:
    """Parse the command line; make the pictures, kill twice, finish, print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data.large_set", description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the result there too, with date, machine and versions")
    given = parser.parse_args()
    sketch(given.base, dtype=torch.float32)  # imports all that the processes need before they are forked
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "pictures", Path(place) / "cache"
        begun = time.perf_counter()
        make_pictures(folder, given.pictures)
        made_s = time.perf_counter() - begun
        said = Path(place) / "said"
        task = (said, folder, cache, given.base, given.resolution)
        most = given.pictures * 2 // 3
        work_apart(task, "decoded_to_check", most)
        kept_looks = looks_kept(cache)
        work_apart(task, "encoded", most)
        kept_entries = entries_kept(cache)
        second = json.loads(said.read_text())
        work_apart(task)
        result = {"pictures": given.pictures, "made_s": round(made_s, 1)}
        result |= {"looks_kept_by_the_first_kill": kept_looks, "entries_kept_by_the_second_kill": kept_entries}
        result["decoded_by_the_second_run"] = second["decoded_to_check"]
        result |= json.loads(said.read_text().splitlines()[-1])
        result["seconds"] = round(time.perf_counter() - begun, 1)
        print(json.dumps(result))
        if given.out:
            given.out.write_text(json.dumps(about() | result, indent=1) + "\n", encoding="utf-8")


def about() -> dict[str, object]:
    """Return date, command, machine and versions: what a result means nothing without."""
    from limner import machine

    command = " ".join(["python -m benchmarks.data.large_set", *sys.argv[1:]])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "command": command, "machine": machine.hardware(), "versions": machine.versions()}


def work_apart(task: tuple[Path, Path, Path, str, int], killed_in: str = "", killed_at: int = 0) -> None:
    """Do the work in a process forked from this one, which has imported everything; it may be killed on its way."""
    process = get_context("fork").Process(target=told, args=(*task, killed_in, killed_at))
    process.start()
    process.join()
    if process.exitcode != (-signal.SIGKILL if killed_in else 0):
        raise SystemExit(f"ended with exit code {process.exitcode}")


def told(said: Path, *task: object) -> None:
    """Do the work, and write what it prints into a file."""
    with said.open("w", encoding="utf-8") as out, redirect_stdout(out):
        work(*task)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
