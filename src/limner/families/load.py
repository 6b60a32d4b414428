"""Load a base by name: the embedded one, a diffusers folder, a single file, or a hub name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.errors import UserError
from limner.families.family import Family
from limner.families.sd15 import SD15

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = {"tiny": ASSETS / "tiny"}
CROSS_ATTENTION_OF_SDXL = 2048
RESOLUTION_OF_SINGLE_FILES = 512


def load(name: str, *, dtype: torch.dtype, device: torch.device | str) -> Family:
    """Load the base called `name`, frozen, in eval mode, in `dtype` on `device`.

    Raises:
        UserError: there is no such base, or it is of a family that is not supported.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    components = _components(name, dtype)
    _refuse_other_families(name, components)
    for component in components.values():
        if isinstance(component, nn.Module):
            component.to(device=device, dtype=dtype)
    identity = {
        "unet": fingerprint(components["unet"]),
        "vae": fingerprint(components["vae"]),
        "text": fingerprint(components["text_encoder"]),
    }
    return SD15(name, components, identity)


def locate(name: str) -> Path | None:
    """Return the folder or file of a base that is on this machine, None for a hub name."""
    path = EMBEDDED.get(name, Path(name).expanduser())
    return path if path.exists() else None


def native_resolution(name: str) -> int:
    """Return the side in pixels of the pictures that a base draws, from its configuration; no weights are read."""
    path = locate(name)
    if path is not None and path.is_file():
        return RESOLUTION_OF_SINGLE_FILES
    unet, vae = _config(name, path, "unet"), _config(name, path, "vae")
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def _config(name: str, path: Path | None, part: str) -> dict[str, Any]:
    """Read one part's config.json from the folder, the hub's cache, or the hub."""
    if path is None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

        _refuse_what_is_no_hub_name(name)
        try:
            file = Path(
                try_to_load_from_cache(name, f"{part}/config.json") or hf_hub_download(name, f"{part}/config.json")
            )
        except (OSError, EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
            raise _unloadable(name, error) from error
    else:
        file = path / part / "config.json"
    if not file.is_file():
        raise UserError(
            f"base={name!r}: {part}/config.json is missing.",
            "Give a complete diffusers folder (with model_index.json, unet, vae, text_encoder, tokenizer, scheduler).",
        )
    return json.loads(file.read_text(encoding="utf-8"))


def fingerprint(module: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a module's configuration, names and weights."""
    config: Any = module.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _components(name: str, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    path = locate(name)
    if path is None:
        _refuse_what_is_no_hub_name(name)
    quiet: dict[str, Any] = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    try:
        if path is not None and path.is_file():
            return StableDiffusionPipeline.from_single_file(str(path), **quiet).components
        source = str(path or name)
        return DiffusionPipeline.from_pretrained(source, use_safetensors=True, **quiet).components
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error


def is_hub_name(name: str) -> bool:
    """Return whether `name` looks like owner/name and not like a path."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not name.endswith(".safetensors")


def _refuse_what_is_no_hub_name(name: str) -> None:
    if not is_hub_name(name):
        raise UserError(
            f"base={name!r}: there is no such folder or file, and it is no hub name (owner/name).",
            f"Use {', '.join(EMBEDDED)}, the path of a diffusers folder or .safetensors file, or a name such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5.",
        )


def _unloadable(name: str, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0]
    return UserError(
        f"base={name!r}: cannot be loaded ({first}).",
        "Give a complete diffusers folder (with model_index.json), a single .safetensors file, or a hub name that "
        "this machine can reach or has in its cache.",
    )


def _refuse_other_families(name: str, components: dict[str, Any]) -> None:
    unet = components.get("unet")
    if unet is None or "text_encoder" not in components:
        raise UserError(f"base={name!r}: is not a Stable Diffusion model (it has no UNet).", "Use an SD 1.5 base.")
    width = unet.config.cross_attention_dim
    if width == CROSS_ATTENTION_OF_SDXL or components.get("text_encoder_2") is not None:
        raise UserError(f"base={name!r}: is SDXL (cross-attention {width}), which is not supported yet.", "Use SD 1.5.")
    if unet.config.in_channels != components["vae"].config.latent_channels:
        raise UserError(
            f"base={name!r}: its UNet takes {unet.config.in_channels} channels: it is an inpainting or editing model.",
            "Use the text-to-image model that it was made from.",
        )
