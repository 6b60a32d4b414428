"""Stable Diffusion 1.5 or XL at full size with random weights: `python -m benchmarks.full_size make|measure`.

`make --out DIR` writes a diffusers folder (and with `--single-file FILE` a checkpoint in the original layout) in the
published configurations and the published number of parameters, so that loading and training can be measured where
the published weights cannot be had. It draws nothing that looks like anything.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import full_size_loading
from limner.export.diffusers_folder import write_tokenizer
from limner.families.load import load
from limner.families.source import ASSETS
from limner.families.tokenizer import CLIP, read_tokenizer
from limner.seeds import generator

VAE, CLIP_L, CLIP_G = 83_653_863, 123_060_480, 694_659_840
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L},
    "sdxl": {"unet": 2_567_463_684, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    "sdxl-refiner": {"unet": 2_259_526_660, "vae": VAE, "text_encoder_2": CLIP_G},
}
"""As published."""
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
PUBLISHED_PREFIX = {"text_encoder": "text_model."}
"""A level of names that the published file has and today's class has not."""


def make(out: Path, dtype: torch.dtype, family: str = "sd15") -> None:
    """Write the diffusers folder, one tensor in memory at a time."""
    make_without_weights(out, family)
    for part, shapes in part_shapes(family).items():
        count, published = sum(math.prod(shape) for shape in shapes.values()), PARAMETERS[family][part]
        assert count == published, f"{part} has {count:,} parameters and should have {published:,}"
        prefix = PUBLISHED_PREFIX.get(part, "")
        named = {prefix + name.removeprefix(prefix): shape for name, shape in shapes.items()}
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        write(out / part / f"{stem}.safetensors", named, dtype)


def make_without_weights(out: Path, family: str) -> None:
    """Write the diffusers folder as far as it is no weights: configurations and tokenizers."""
    shutil.copytree(ASSETS / family, out, dirs_exist_ok=True)
    for name, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        if encoder in PARAMETERS[family] and not (out / name).is_dir():
            tokenizer = read_tokenizer(str(CLIP), **({"pad_token": "!"} if name == "tokenizer_2" else {}))
            write_tokenizer(tokenizer, out / name)


def part_shapes(family: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shape of every weight of a family's modules, built without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = ASSETS / family
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(folder / "unet"))),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(str(folder / "vae"))),
            **{
                part: kind(CLIPTextConfig.from_pretrained(str(folder / part)))
                for part, kind in kinds.items()
                if part in PARAMETERS[family]
            },
        }
    return {part: {name: tuple(p.shape) for name, p in module.named_parameters()} for part, module in modules.items()}


def write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Write a safetensors file of random weights: the header first, then each tensor as it is drawn."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        kind = DTYPES[str(dtype).removeprefix("torch.")]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in weights(shapes):
            file.write(tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy())
            assert tensor.shape == shapes[name]


def weights(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights as PyTorch begins them, near enough: activations stay finite in every dtype."""
    for name, shape in shapes.items():
        if "embedding.weight" in name:
            yield name, torch.randn(shape, generator=generator("full size", name)) * 0.02
        elif len(shape) == 1:
            yield name, torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            bound = math.prod(shape[1:]) ** -0.5
            yield name, (torch.rand(shape, generator=generator("full size", name)) * 2 - 1) * bound


def write_checkpoint(folder: Path, file: Path, dtype: torch.dtype) -> None:
    """Write the folder's model as one file in the original layout."""
    from limner.export.single_file import write_single_file

    write_single_file(load(str(folder), dtype=dtype, device="cpu"), file, dtype=dtype, about={"title": "random"})


def main() -> None:
    """Parse the command line, make or measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="write the model")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--family", choices=PARAMETERS, default="sd15")
    making.add_argument("--dtype", choices=DTYPES, default="float16")
    making.add_argument("--single-file", type=Path, help="write the checkpoint in the original layout as well")
    measuring = verbs.add_parser("measure", help="load it in fresh processes, and print memory and time")
    measuring.add_argument("--base", required=True, help="the folder or file that `make` wrote")
    measuring.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float16"])
    measuring.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    if given.verb == "measure":
        full_size_loading.measure(given.base, given.dtypes, given.rounds)
        return
    make(given.out, getattr(torch, given.dtype), given.family)
    if given.single_file:
        write_checkpoint(given.out, given.single_file, getattr(torch, given.dtype))
    print(given.single_file or given.out)


if __name__ == "__main__":
    main()
