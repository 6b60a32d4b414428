"""Safetensors files: equal bytes for equal content, whole or not there at all, read back at every save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import Guarded, UserError
from limner.export.modelspec import HEADER
from limner.files import replacing


def header(about: Mapping[str, object], spec: Mapping[str, str]) -> dict[str, str]:
    """Return what a file's header says: the ModelSpec fields, and `about` as JSON under "limner"."""
    return {"format": "pt", **spec, HEADER: json.dumps(dict(about), sort_keys=True)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file and compare it, tensor by tensor, with what was to be written.

    Raises:
        Guarded: a tensor is not finite; nothing is written.
    """
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        dtype = str(tensors[broken[0]].dtype).removeprefix("torch.")
        raise Guarded(
            f"{path}: was not written, because {broken[0]} is not finite in {dtype}.",
            "Lower the learning rate; what is only too large for float16 can be written in bfloat16.",
        )
    wanted = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as new:
        save_file(wanted, new, dict(metadata))
        _sort_header(new)
        _compare(wanted, new)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, memory-mapped, and its header.

    Raises:
        UserError: the file is missing or damaged.
    """
    if path.is_dir():
        inside = path / "adapter.safetensors"
        raise UserError(f"{path}: is a folder.", f"Name the file: {inside if inside.is_file() else 'X.safetensors'}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.", "Give the path of a .safetensors file.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error}).", "Get the file again.") from error


def _compare(wanted: Mapping[str, Tensor], path: Path) -> None:
    found, _ = read_tensors(path)
    for name in wanted.keys() | found.keys():
        own, read = wanted.get(name), found.get(name)
        if own is None or read is None or own.dtype != read.dtype or not torch.equal(own, read):
            raise RuntimeError(f"{path}: {name} reads back differently")


def _sort_header(path: Path) -> None:
    """Sort the keys of the header in place: the library's order changes from save to save, its length does not."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        fields = json.loads(file.read(length))
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, f"{path}: a sorted header of {len(text)} bytes in the place of {length}"
        file.seek(8)
        file.write(text.ljust(length))
