"""Load a base by name: the embedded one, a diffusers folder, a single file, or a hub name."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from limner.errors import UserError
from limner.families.courier import Courier
from limner.families.family import Family, ReadPart
from limner.families.recognise import FAMILIES, Recognised, recognise, refuse_unsupported
from limner.families.sd15 import SD15
from limner.families.sdxl import SDXL
from limner.families.single_file import Keep, read_part
from limner.families.source import PARTS, files_of, missing_files
from limner.families.storage import BaseStorage, keep
from limner.families.tokenizer import tokenizer_of
from limner.families.weights import UNUSED, fill, read_header, read_tensors, require_fit, weights_files
from limner.machine import freed_at_once, keep_few_kernels, uncollected

MEMBERS: dict[str, type[Family]] = {"sd15": SD15, "sdxl": SDXL, "sdxl-refiner": SDXL}
VOLATILE = ("dtype", "torch_dtype", "architectures", "transformers_version")
"""Keys of a configuration that say who wrote it and not what it is; those with a leading underscore are others."""
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What the attention of a VAE was called in diffusers folders before 2023, SD 1.5's own among them."""


def load(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    storage: BaseStorage = "as_computed",
    offload: bool = False,
    unread: Collection[str] = (),
) -> Family:
    """Load the base called `name`, frozen, in eval mode, computing in `dtype` on `device`.

    Weights go one at a time from the file to where they stay, in the storage asked for: the peak is their own size and
    one tensor. With `offload` those of linear layers and convolutions stay on the host. Of parts that are named
    in `unread` only names and shapes are read, until `complete` reads the weights.

    Raises:
        UserError: there is no such base, it is not complete, or it is of a family that is not supported.
    """
    base = recognise(name)
    refuse_unsupported(base)
    base = base if base.path.is_file() else _with_weights(base)
    modules, files = _modules(base), _files(base)
    courier = Courier(torch.device(device)) if offload else None

    def read(part: str) -> dict[str, Tensor]:
        if _files(base) != files:
            raise UserError(f"base={name!r}: its files have changed since it was loaded.", "Put them back.")
        return weights_of(base.path, base.family, part, modules[part], dtype=_held(base, part, dtype), device=device,
                          keep=partial(keep, part, form=storage, courier=courier))  # fmt: skip

    with freed_at_once() if storage != "as_computed" else nullcontext():  # what is packed has been whole before
        family = _family(base, modules, read, device, unread)
        family.identity |= fingerprints(family)
    family.storage = storage
    return family


def complete(family: Family) -> None:
    """Read the parts of a base that `load` has left unread, if there are any.

    Raises:
        UserError: the base's files have changed meanwhile, or do not fit together.
    """
    if family.unread:
        with freed_at_once() if family.storage != "as_computed" else nullcontext():
            family.bring_back(*family.unread)
            family.identity = fingerprints(family, known=family.identity)


def sketch(name: str, *, dtype: torch.dtype, storage: BaseStorage = "as_computed", offload: bool = False) -> Family:
    """Return the base called `name` on torch's device "meta": modules and shapes, and no memory for weights.

    Of its files only configurations and the tokenizers are read. Its identity is empty.
    """
    base = recognise(name)
    refuse_unsupported(base)
    modules = _modules(base)
    courier = Courier(torch.device("meta")) if offload else None
    shapes = {part: {key: t.shape for key, t in module.state_dict().items()} for part, module in modules.items()}

    def read(part: str) -> dict[str, Tensor]:
        held = _held(base, part, dtype)
        return {
            key: keep(part, key, torch.empty(shape, dtype=held, device="meta"), storage, courier)
            for key, shape in shapes[part].items()
        }

    return _family(base, modules, read, "meta")


def parts_of(name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield each part of the base called `name` ("vae", "text_encoder", "unet" ...) with its weights in float32.

    They are on the CPU, and one part is read at a time.

    Raises:
        UserError: there is no such base, it is not complete, or it is of a family that is not supported.
    """
    base = recognise(name)
    refuse_unsupported(base)
    base = base if base.path.is_file() else _with_weights(base)
    modules = _modules(base)
    for part in list(modules):
        module = modules.pop(part)
        fill(module, weights_of(base.path, base.family, part, module, dtype=torch.float32, device="cpu"),
             where=f"base={base.name!r}: {part}")  # fmt: skip
        yield part, module


def native_resolution(name: str) -> int:
    """Return the side in pixels of the pictures that a base draws; no weights are read.

    Raises:
        UserError: there is no such base, or it is of a family that is not supported.
    """
    base = recognise(name)
    refuse_unsupported(base)
    return base.native_resolution_px


def fingerprints(family: Family, *, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the identity of a family's weights as they are now, of those that are there; what is known is taken."""
    known = known or {}
    parts = {"unet": ["unet"], "vae": ["vae"], "text": list(family.encoders)}
    return {
        name: known.get(name) or _fingerprint(*(family.parts[part] for part in own))
        for name, own in parts.items()
        if name in known or not family.aside.intersection(own)
    }


def _fingerprint(*modules: nn.Module) -> str:
    """Return 16 hex digits of the XXH3 of modules' configurations, names and weights, whoever wrote the file.

    It tells a change from none, not a forger from an owner; SHA-256 would take seconds of every start.
    """
    digest = xxhash.xxh3_64()
    for module in modules:
        config: Any = module.config
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in VOLATILE}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _family(
    base: Recognised, modules: dict[str, Any], read: ReadPart, device: torch.device | str, unread: Collection[str] = ()
) -> Family:
    """Return the family around modules that get their weights from `read`, but those that are left unread."""
    for part, module in modules.items():
        if part in unread:  # at least its names and shapes are looked at
            shapes = weights_of(base.path, base.family, part, module, dtype=torch.float32, device="meta")
            require_fit(module, shapes, where=f"base={base.name!r}: {part}")
        else:
            fill(module, dict(read(part)), where=f"base={base.name!r}: {part}")
            module.to(device)  # what is no weight: position ids
    components = {**modules, **_tokenizers(base, modules), "scheduler": _scheduler(base)}
    family = MEMBERS[base.family](base.name, components, read, unread)
    if base.zero_terminal_snr:
        family.set_schedule(zero_terminal_snr=True)
    return family


def silence() -> None:
    """Import the libraries that models are made with, and stop them from telling of what concerns their developers."""
    _import_bitsandbytes()  # before diffusers does
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _import_bitsandbytes() -> None:
    """Import bitsandbytes, where it is installed, silently and without PyTorch's compiler where there is no GPU.

    It compiles its kernels for CPUs as soon as it is imported; the compiler takes a second and 45 MB of every start.
    """
    if not importlib.util.find_spec("bitsandbytes") or "bitsandbytes" in sys.modules:
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    compiler = torch.compile

    def as_written(function: Any = None, **_: Any) -> Any:
        return as_written if function is None else function

    if not torch.accelerator.is_available():
        torch.compile = as_written
    try:
        importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compiler


@uncollected()
def _modules(base: Recognised) -> dict[str, Any]:
    """Return the base's modules as their configurations describe them, without memory for weights."""
    silence()
    keep_few_kernels()
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    from transformers.initialization import no_init_weights

    folder = base.configurations
    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    own = {part: encoders[part] for part in FAMILIES[base.family].prefixes if part in encoders}
    for part in own:
        if not (folder / part / "config.json").is_file():
            raise UserError(
                f"base={base.name!r}: is {base.called}, and {part}/config.json is missing.",
                "Give a complete diffusers folder.",
            )
    configs = {part: CLIPTextConfig.from_pretrained(str(folder / part), local_files_only=True) for part in own}
    with init_empty_weights(), no_init_weights():
        return {
            "vae": AutoencoderKL.from_config(_json(folder / "vae/config.json")),
            **{part: kind(configs[part]) for part, kind in own.items()},
            "unet": UNet2DConditionModel.from_config(_json(folder / "unet/config.json")),
        }


def _held(base: Recognised, part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of a part: SDXL's VAE overflows in float16 unless it says that it does not."""
    if part != "vae" or dtype != torch.float16 or base.family == "sd15":
        return dtype
    return torch.float32 if _json(base.configurations / "vae/config.json").get("force_upcast", True) else dtype


def weights_of(
    path: Path,
    family: str,
    part: str,
    module: Any,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    keep: Keep = lambda _, tensor: tensor,
) -> dict[str, Tensor]:
    """Return the weights of one part of a folder or single file by the names that today's classes have for them.

    Each is brought by `keep`, as soon as it is read, to the form in which it stays.
    """
    if path.is_file():
        state = read_part(path, family, part, module, dtype=dtype, device=device, keep=keep)
    else:
        state = {}
        for file in weights_files(path / part):
            tensors = read_tensors(file, read_header(file).shapes, dtype=dtype, device=device)
            state |= {name: keep(name, tensor) for name, tensor in tensors}
    if part == "vae":
        return {_renamed(name): tensor for name, tensor in state.items()}
    if part.startswith("text_encoder"):  # transformers 5.6 took a level of names away; files have it, or not
        level = "text_model." if hasattr(module, "text_model") else ""
        bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
        state = {name if name.startswith("text_projection.") else level + name: t for name, t in bare.items()}
    own = module.state_dict()
    return {name: tensor for name, tensor in state.items() if name in own or not name.endswith(UNUSED)}


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new) if ".attentions." in name else name
    return name


def _files(base: Recognised) -> dict[Path, tuple[int, int]]:
    """Return size and time of the files that hold the base's weights."""
    files = [base.path] if base.path.is_file() else [f for part in PARTS for f in weights_files(base.path / part)]
    found = {file: file.stat() for file in files if file.is_file()}
    return {file: (about.st_size, about.st_mtime_ns) for file, about in found.items()}


def _with_weights(base: Recognised) -> Recognised:
    """Return the base with a folder that has everything in it; what the hub has is fetched first."""
    folder = files_of(base.name, weights=True)
    lacking = next(missing_files(folder, weights=True), None)
    if lacking:
        raise UserError(
            f"base={base.name!r}: {lacking} is missing.",
            "Give a complete diffusers folder (with model_index.json, unet, vae, text_encoder, tokenizer, scheduler).",
        )
    return replace(base, path=folder, configurations=folder)


def _tokenizers(base: Recognised, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer of each text encoder, by its name in a diffusers folder."""
    names = [part.replace("text_encoder", "tokenizer") for part in modules if part.startswith("text_encoder")]
    return {name: tokenizer_of(base, name) for name in names}


def _scheduler(base: Recognised) -> Any:
    """Return the base's own scheduler, with the prediction type that was recognised."""
    import diffusers

    file = base.configurations / "scheduler/scheduler_config.json"
    config = _json(file)
    kind: Any = getattr(diffusers, str(config["_class_name"]), None)
    if kind is None or diffusers.SchedulerMixin not in kind.__mro__:
        raise UserError(
            f"{file}: {config['_class_name']} is no scheduler of diffusers.", "Name one, such as DDIMScheduler."
        )
    return kind.from_config(config, prediction_type=base.prediction_type)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
