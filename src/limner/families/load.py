"""Load a base by name: the embedded one, a diffusers folder, a single file, or a hub name."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import UserError
from limner.families.family import Family
from limner.families.recognise import Recognised, recognise, refuse_unsupported
from limner.families.sd15 import SD15
from limner.families.single_file import read_part
from limner.families.source import files_of, missing_files
from limner.families.tokenizer import load_tokenizer, read_tokenizer
from limner.families.weights import UNUSED, fill, read_header, read_tensors, weights_files

VOLATILE = ("dtype", "torch_dtype", "architectures", "transformers_version")
"""Keys of a configuration that say who wrote it and not what it is; those with a leading underscore are others."""
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What the attention of a VAE was called in diffusers folders before 2023, SD 1.5's own among them."""


def load(name: str, *, dtype: torch.dtype, device: torch.device | str) -> Family:
    """Load the base called `name`, frozen, in eval mode, in `dtype` on `device`.

    Weights go one at a time from the file to where they stay: the peak is their own size and one tensor.

    Raises:
        UserError: there is no such base, it is not complete, or it is of a family that is not supported.
    """
    base = recognise(name)
    refuse_unsupported(base)
    base = base if base.path.is_file() else _with_weights(base)
    _silence()
    components = _modules(base)
    for part in ("vae", "text_encoder", "unet"):
        module = components[part]
        fill(module, _state(base, part, module, dtype=dtype, device=device), where=f"base={name!r}: {part}")
        module.to(device)  # what is no weight: position ids
    components |= {"tokenizer": _tokenizer(base), "scheduler": _scheduler(base)}
    identity = {
        "unet": fingerprint(components["unet"]),
        "vae": fingerprint(components["vae"]),
        "text": fingerprint(components["text_encoder"]),
    }
    return _family(base, components, identity)


def sketch(name: str, *, dtype: torch.dtype) -> Family:
    """Return the base called `name` on torch's device "meta": modules and shapes, and no memory for weights.

    Of its files only configurations and the tokenizer are read. Its identity is empty.
    """
    base = recognise(name)
    refuse_unsupported(base)
    _silence()
    components = _modules(base)
    for part in ("vae", "text_encoder", "unet"):
        module = components[part]
        shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
        state = {key: torch.empty(shape, dtype=dtype, device="meta") for key, shape in shapes.items()}
        module.load_state_dict(state, assign=True)
        module.to("meta")
    components |= {"tokenizer": _require_tokenizer(load_tokenizer(name), name), "scheduler": _scheduler(base)}
    return _family(base, components, {"unet": "", "vae": "", "text": ""})


def native_resolution(name: str) -> int:
    """Return the side in pixels of the pictures that a base draws; no weights are read.

    Raises:
        UserError: there is no such base, or it is of a family that is not supported.
    """
    base = recognise(name)
    refuse_unsupported(base)
    return base.native_resolution_px


def fingerprint(module: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a module's configuration, names and weights, whoever wrote the file."""
    config: Any = module.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in VOLATILE}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _family(base: Recognised, components: dict[str, Any], identity: dict[str, str]) -> Family:
    family = SD15(base.name, components, identity)
    if base.zero_terminal_snr:
        family.set_schedule(zero_terminal_snr=True)
    return family


def _silence() -> None:
    """Stop the libraries from telling of what concerns their developers."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before diffusers imports it, where it is installed
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _modules(base: Recognised) -> dict[str, Any]:
    """Return the base's modules as their configurations describe them, without memory for weights."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = base.configurations
    text = CLIPTextConfig.from_pretrained(str(folder / "text_encoder"), local_files_only=True)
    with init_empty_weights():
        return {
            "unet": UNet2DConditionModel.from_config(_json(folder / "unet/config.json")),
            "vae": AutoencoderKL.from_config(_json(folder / "vae/config.json")),
            "text_encoder": CLIPTextModel(text),
        }


def _state(
    base: Recognised, part: str, module: Any, *, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Read one part's weights, under the names that the module has for them."""
    if base.path.is_file():
        state = read_part(base.path, part, module.config, dtype=dtype, device=device)
    else:
        state = {}
        for file in weights_files(base.path / part):
            names = [name for name in read_header(file).shapes if not name.endswith(UNUSED)]
            state |= read_tensors(file, names, dtype=dtype, device=device)
    if part == "vae":
        return {_renamed(name): tensor for name, tensor in state.items()}
    if part == "text_encoder":  # transformers 5.6 took a level of names away; files have it, or not
        level = "text_model." if hasattr(module, "text_model") else ""
        state = {level + name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith(UNUSED)}


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new) if ".attentions." in name else name
    return name


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


def _tokenizer(base: Recognised) -> Any:
    folder = str(base.configurations / "tokenizer")
    return _require_tokenizer(read_tokenizer(folder, local_files_only=True), folder)


def _require_tokenizer(tokenizer: Any | None, where: str) -> Any:
    if tokenizer is None:
        raise UserError(f"{where}: holds no tokenizer.", "It needs vocab.json and merges.txt, or tokenizer.json.")
    return tokenizer


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
