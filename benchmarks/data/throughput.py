"""Pictures per second of check and cache against the encoder alone: `python -m benchmarks.data.throughput`."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from limner.families.family import Family, rows_together
from limner.families.load import load
from limner.pictures.decode import decode
from limner.pictures.fit import fit_to
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.encode import prepare, to_pixels


def make_photos(folder: Path, number: int, side_px: int) -> list[Path]:
    """Write JPEG files of a camera's kind: much detail, 4 : 3."""
    folder.mkdir()
    files = []
    for i in range(number):
        draws = np.random.default_rng(i)
        coarse = Image.fromarray(draws.integers(0, 256, (side_px * 3 // 32, side_px * 4 // 32, 3), dtype=np.uint8))
        files.append(folder / f"{i:05d}.jpg")
        coarse.resize((side_px * 4 // 3, side_px), Image.Resampling.BICUBIC).save(files[-1], quality=92)
    return files


def vae_of_sd() -> AutoencoderKL:
    """Return a VAE of the size of SD 1.5's, with random weights: it costs what the published one costs."""
    blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    channels = (128, 256, 512, 512)
    vae = AutoencoderKL(
        down_block_types=blocks[0], up_block_types=blocks[1], block_out_channels=channels, layers_per_block=2
    )
    return vae.eval()


def limit(family: Family, number: int, size: tuple[int, int]) -> None:
    """Encode `number` pictures that are in memory already, in the batches that Limner uses."""
    rows = rows_together(size)
    pixels = torch.rand(rows, 3, size[1], size[0]) * 2 - 1
    for _ in range(-(-number // rows)):
        family.encode_pixels(pixels)


def plain_loop(family: Family, files: list[Path], size: tuple[int, int]) -> None:
    """Decode, resize and encode one picture after the other."""
    for file in files:
        image = decode(file)
        family.encode_pixels(to_pixels(fit_to(image.size, size).apply(image)))


def limner(family: Family, folder: Path, size: tuple[int, int], cache: Path) -> None:
    """Check and cache the folder as a run does."""
    spec = Pictures(buckets=False, max_upscale=100.0)
    checked = check_pictures(folder, spec, resolution_px=size[0])
    prepare(checked, family, spec=spec, cache=cache, batch=1)


def main() -> None:
    """Parse the command line, time the three in turn, print pictures per second."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data.throughput", description=__doc__)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--photo", type=int, default=768, help="height of the photos, in pixels")
    parser.add_argument("--resolution", type=int, default=0)
    parser.add_argument("--vae-of-sd", action="store_true", help="a VAE of SD 1.5's size, random weights")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    family = load(given.base, dtype=torch.float32, device=given.device)
    if given.vae_of_sd:
        family.vae = vae_of_sd().to(given.device)
    side = given.resolution or family.native_resolution_px
    with tempfile.TemporaryDirectory() as place:
        files = make_photos(Path(place) / "photos", given.pictures, given.photo)
        cache = Path(place) / "cache"
        arms: dict[str, Callable[[], None]] = {
            "the encoder alone": lambda: limit(family, len(files), (side, side)),
            "plain loop, one by one": lambda: plain_loop(family, files, (side, side)),
            "check and cache": lambda: limner(family, files[0].parent, (side, side), cache),
        }
        best = {name: (float("inf"), float("inf")) for name in arms}
        for _ in range(given.rounds):
            for name, arm in arms.items():
                shutil.rmtree(cache, ignore_errors=True)
                begun, begun_cpu = time.perf_counter(), time.process_time()
                arm()
                taken = (time.perf_counter() - begun, time.process_time() - begun_cpu)
                best[name] = min(best[name], taken)
    print(f"{given.base}, {given.device}, {len(files)} photos of {given.photo} px to {side} px, best of {given.rounds}")
    print(f"{'':<26}{'pictures/s':>12}{'of the limit':>14}{'processor s':>14}{'of the limit':>14}")
    fastest, leanest = best["the encoder alone"]
    for name, (seconds, cpu) in best.items():
        print(f"{name:<26}{len(files) / seconds:>12.2f}{fastest / seconds:>14.2f}{cpu:>14.1f}{leanest / cpu:>14.2f}")


if __name__ == "__main__":
    main()
