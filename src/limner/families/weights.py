"""Weights files: names and shapes from the header, tensors one at a time, pickled code never run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from limner.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PICKLED = {".ckpt", ".pt", ".pth", ".bin"}
WINDOW_BYTES = 128 * 2**20
"""A safetensors file is mapped into memory; it is mapped afresh after so much, or all of it would count as used."""
FORMS = (
    "{}.safetensors", "{}.safetensors.index.json", "{}.fp16.safetensors", "{}.safetensors.index.fp16.json",
    "{}.bin", "{}.bin.index.json", "{}.fp16.bin", "{}.bin.index.fp16.json",
)  # fmt: skip
"""How a weights file, or the index of its shards, is named in a diffusers folder; the first that is there is taken."""
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SAFE_FORM = "Use a .safetensors file of the same model."
UNUSED = ("embeddings.position_ids", "logit_scale", "text_projection.weight")
"""Ends of names that some files carry although the module that they are for has no such weight."""


@dataclass(frozen=True)
class Header:
    """What a weights file says of itself."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of every tensor by its name."""
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Return names, shapes and metadata of a weights file; no weight is read.

    Raises:
        UserError: the file is damaged, of an unknown kind, or holds pickled code.
    """
    if path.suffix in PICKLED:
        tensors = _read_pickled(path, device="meta")
        return Header({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {})
    try:
        with safe_open(str(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return Header(shapes, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a readable .safetensors file ({error}).", "Get the file again.") from error


def read_tensors(
    path: Path, names: Collection[str], *, dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors of a file, each a copy of its own in `dtype` on `device`."""
    if path.suffix in PICKLED:
        for name, tensor in _read_pickled(path, device="cpu").items():
            if name in names:
                yield name, tensor.to(device=device, dtype=dtype, copy=True)
        return
    left = list(names)
    while left:
        mapped = 0
        with safe_open(str(path), framework="pt") as file:
            while left and mapped < WINDOW_BYTES:
                name = left.pop()
                tensor: Tensor = file.get_tensor(name)
                mapped += tensor.nbytes
                yield name, tensor.to(device=device, dtype=dtype, copy=True)
                del tensor


def choose_weights(names: Collection[str]) -> str | None:
    """Return which of a folder's files holds the weights, or is the index of their shards; None without any.

    Full precision goes before a float16 variant, and safetensors before pickled files.
    """
    wanted = (form.format(stem) for form in FORMS for stem in STEMS)
    return next((name for name in wanted if name in names), None)


def weights_files(folder: Path) -> list[Path]:
    """Return the files that hold a part's weights in a diffusers folder: one, or several shards; empty without any."""
    chosen = choose_weights([path.name for path in folder.glob("*")])
    if chosen is None:
        return []
    if not chosen.endswith(".json"):
        return [folder / chosen]
    shards = set(json.loads((folder / chosen).read_text(encoding="utf-8"))["weight_map"].values())
    return [folder / Path(shard).name for shard in sorted(shards)]


def fill(module: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Give a module without memory its weights, which become its own; `state` must fit it name by name.

    Raises:
        UserError: a weight is missing, has another shape, or has no place in the module.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
    problems = [f"{len(missing)} weights are missing (first: {missing[0]})"] if missing else []
    problems += [f"{len(strange)} have no place in the model (first: {strange[0]})"] if strange else []
    problems += [f"{other[0]} is {found[other[0]]} and should be {wanted[other[0]]}"] if other else []
    if problems:
        raise UserError(
            f"{where}: does not fit its configuration: {'; '.join(problems)}.",
            "The model is not complete or not what its configuration says: get it again.",
        )
    module.load_state_dict(state, assign=True)


def _read_pickled(path: Path, *, device: str) -> dict[str, Tensor]:
    """Return the tensors of a file that torch.save wrote; a pickle that asks for anything else is not loaded."""
    import torch

    if not path.is_file():
        raise UserError(f"{path}: there is no such file.", "Give the path of a model.")
    if not is_zipfile(path):
        raise UserError(f"{path}: is a bare pickle or damaged, and was not loaded.", SAFE_FORM)
    code = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if code:
        raise UserError(f"{path}: contains pickled code ({', '.join(sorted(code)[:3])}) and was not loaded.", SAFE_FORM)
    try:
        held = torch.load(path, map_location=device, weights_only=True, mmap=device == "cpu")
    except Exception as error:  # a pickle can be broken or hostile in any way; none of them is a bug of ours
        raise UserError(f"{path}: is not a readable weights file ({_first_line(error)}).", SAFE_FORM) from error
    return dict(_tensors_in(held))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _tensors_in(held: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested dictionaries with its dotted name; a "state_dict" around it all is not named."""
    import torch

    if isinstance(held, torch.Tensor):
        yield prefix.removesuffix("."), held
    elif isinstance(held, dict):
        inner: dict[Any, Any] = held
        for name, value in inner.items():
            yield from _tensors_in(value, prefix if name == "state_dict" else f"{prefix}{name}.")
