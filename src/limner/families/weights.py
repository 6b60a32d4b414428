"""Weights files: names and shapes from the header, tensors one at a time, pickled code never run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from limner.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PICKLED = {".ckpt", ".pt", ".pth", ".bin"}
HEADER_BYTES = 32 * 2**20
"""A header has about 100 bytes for each tensor, and what training tools note: published ones are far below this."""
NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
         "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}  # fmt: skip
"""NumPy's type of each number format; bfloat16 it does not have."""
PICKLED_NAMES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64"}
WINDOW_BYTES = 128 * 2**20
"""A safetensors file is mapped into memory; it is mapped afresh after so much, or all of it would count as used."""
PIECE = 2**15
"""So many values of float32 are at home in the cache of a core."""
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
    dtypes: dict[str, str] = field(default_factory=dict[str, str])
    """Number format of every tensor, as safetensors calls it: F32, F16, BF16 ..."""


def read_header(path: Path) -> Header:
    """Return names, shapes and metadata of a weights file; no weight is read.

    Raises:
        UserError: the file is damaged, of an unknown kind, or holds pickled code.
    """
    if path.suffix in PICKLED:
        tensors = _read_pickled(path, device="meta")
        dtypes = {name: PICKLED_NAMES.get(str(tensor.dtype), str(tensor.dtype)) for name, tensor in tensors.items()}
        return Header({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {}, dtypes)
    _require_modest_header(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return Header(shapes, file.metadata() or {}, {name: part.get_dtype() for name, part in slices.items()})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error


def precision_of(header: Header) -> str:
    """Return the number format of most of a file's tensors: float32, float16 or bfloat16."""
    formats = Counter(dtype for name, dtype in header.dtypes.items() if header.shapes[name])
    most = next((dtype for dtype, _ in formats.most_common(1)), "F32")
    return {"F16": "float16", "BF16": "bfloat16"}.get(most, "float32")


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return all tensors of a file as float32 arrays of NumPy, without torch where it is a .safetensors file.

    Raises:
        UserError: the file is missing, damaged, holds pickled code, or numbers of a format that is not known.
    """
    if path.suffix in PICKLED:
        return {name: tensor.float().numpy() for name, tensor in _read_pickled(path, device="cpu").items()}
    strange = {dtype for dtype in read_header(path).dtypes.values() if dtype not in NUMPY}
    if strange:
        raise UserError(f"{path}: holds numbers in {min(strange)}.", f"Known are {', '.join(NUMPY)}.")
    with path.open("rb") as file:
        fields = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    held = np.memmap(path, np.uint8, "c", offset=start) if path.stat().st_size > start else np.zeros(0, np.uint8)
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, about in fields.items():
        if name != "__metadata__":
            first, end = about["data_offsets"]
            numbers = held[first:end].view(NUMPY[about["dtype"]])
            if about["dtype"] == "BF16":  # the upper half of a float32
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = np.array(numbers, np.float32).reshape(about["shape"])
    return arrays


def _require_modest_header(path: Path) -> None:
    """Refuse a file whose header claims to be larger than any real one, before it is parsed."""
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.", "Give the path of a .safetensors file.") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if claimed > HEADER_BYTES:
        raise _unreadable(path, f"its header claims {claimed} bytes, at most {HEADER_BYTES} are read")


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path}: is not a readable .safetensors file ({why}).", "Get the file again.")


def read_tensors(
    path: Path, names: Collection[str], *, dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors of a file, each a copy of its own in `dtype` on `device`."""
    if path.suffix in PICKLED:
        for name, tensor in _read_pickled(path, device="cpu").items():
            if name in names:
                yield name, _copied(tensor, dtype, device)
        return
    left = list(names)
    while left:
        mapped = 0
        with safe_open(str(path), framework="pt") as file:
            while left and mapped < WINDOW_BYTES:
                name = left.pop()
                tensor: Tensor = file.get_tensor(name)
                mapped += tensor.nbytes
                yield name, _copied(tensor, dtype, device)
                del tensor


def _copied(tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return a copy in a dtype on a device.

    From float16 to bfloat16 PyTorch goes value by value: by way of float32, a piece at a time, it is the same in half
    the time.
    """
    import torch

    if (tensor.dtype, dtype, torch.device(device).type) != (torch.float16, torch.bfloat16, "cpu"):
        return tensor.to(device=device, dtype=dtype, copy=True)
    copy, size = torch.empty(tensor.shape, dtype=dtype), PIECE * torch.get_num_threads()
    between = torch.empty(min(size, tensor.numel()), dtype=torch.float32)
    for source, target in zip(tensor.reshape(-1).split(size), copy.view(-1).split(size), strict=True):
        target.copy_(between[: source.numel()].copy_(source))
    return copy


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
    require_fit(module, state, where=where)
    module.load_state_dict(state, assign=True)


def require_fit(module: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Refuse weights that do not fit a module name by name and shape by shape.

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
