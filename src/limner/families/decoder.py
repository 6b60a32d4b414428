"""A small decoder (TAESD, diffusers' AutoencoderTiny): pictures to look at, in a fraction of the VAE's time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import UserError
from limner.families.family import rows_together
from limner.families.load import silence
from limner.families.recognise import FAMILIES, Recognised, refuse_unsupported
from limner.families.source import PART_CONFIGURATION, PART_WEIGHTS, part_of, safe_weights
from limner.families.weights import fill, read_header, read_tensors
from limner.rundir import read_json
from limner.types import Latents, Pixels

SETTING = "preview.decoder"
KIND, PART = "AutoencoderTiny", "decoder."
"""The class of diffusers that a small decoder is, and how the names of what decodes begin in its file."""
PUBLISHED = (4, 8)
"""Channels of the published ones' latents, and the side in pixels of one."""


@dataclass(frozen=True)
class Decoder:
    """A small decoder that is loaded, frozen; its encoder is left in the file."""

    name: str
    """What the user called it."""
    module: nn.Module
    scaling_factor: float
    """What latents at the UNet's scale are divided by: 1 for TAESD, which was trained on them as they are."""
    pixels_per_latent: int

    @torch.no_grad()
    def decode(self, latents: Latents) -> Pixels:
        """Return pictures in [-1, 1], float32, of latents at the UNet's scale; large ones are decoded one by one."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        own = next(self.module.parameters())
        parts = (latents / self.scaling_factor).to(own.device, own.dtype).split(rows_together((width, height)))
        return torch.cat([self.module(part).float().clamp(-1, 1) for part in parts])


def check_decoder(name: str, base: Recognised) -> Path:
    """Return the folder of the small decoder called `name`, which fits the base; no weight is read.

    Raises:
        UserError: there is none, it is no AutoencoderTiny in a .safetensors file, or it is for other latents.
    """
    refuse_unsupported(base)
    where, own = f"{SETTING}={name!r}", base.latents[:2]
    like = FAMILIES[base.family].decoder if own == PUBLISHED else ""
    hint = f"Use one that was made for this base{f', such as {like}' if like else ''}."
    made_for = next((known.called for known in FAMILIES.values() if known.decoder == name), "")
    if made_for and name != like:  # the latents of SD 1.5 and SDXL are of one shape, and not of one kind
        what = f"is {base.called}" if like else f"has others ({own[0]} channels, {own[1]} px)"
        raise UserError(f"{where}: is for the latents of {made_for}, and base={base.name!r} {what}.", hint)
    folder = part_of(SETTING, name, like)
    if not (folder / PART_CONFIGURATION).is_file():
        what = "is a file" if folder.is_file() else f"has no {PART_CONFIGURATION}"
        raise UserError(f"{where}: {what}, and a small decoder is a folder with {PART_CONFIGURATION} and "
                        f"{PART_WEIGHTS}.", hint)  # fmt: skip
    config: Mapping[str, Any] = read_json(folder / PART_CONFIGURATION)
    if config.get("_class_name") != KIND:
        raise UserError(f"{where}: is {config.get('_class_name', 'of no known class')}, and a small decoder is "
                        f"{KIND}.", hint)  # fmt: skip
    file = _weights(folder)
    if file is None:
        raise UserError(f"{where}: has no .safetensors file.", f"Put {PART_WEIGHTS} into {folder}.")
    channels, side = config.get("latent_channels", 4), _pixels_per_latent(config)
    if (channels, side) != own:
        raise UserError(f"{where}: is for latents of {channels} channels and {side} px, and those of "
                        f"base={base.name!r} have {own[0]} and {own[1]} px.", hint)  # fmt: skip
    if not any(key.startswith(PART) for key in read_header(file).shapes):
        raise UserError(f"{file}: has no decoder (no weight is called {PART}...).", hint)
    return folder


def load_decoder(name: str, base: Recognised, *, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """Load the small decoder called `name` for a base, frozen, in `dtype` on `device`.

    Raises:
        UserError: as of `check_decoder`, or its weights are not what its configuration says.
    """
    folder = check_decoder(name, base)
    silence()
    from accelerate import init_empty_weights
    from diffusers import AutoencoderTiny

    config, file = read_json(folder / PART_CONFIGURATION), _weights(folder)
    assert file, f"got {folder} without weights"
    try:
        with init_empty_weights():
            model: Any = AutoencoderTiny.from_config(config)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / PART_CONFIGURATION}: makes no {KIND} ({error}).", "Get it again.") from error
    names = [key for key in read_header(file).shapes if key.startswith(PART)]
    state: dict[str, Tensor] = {key.removeprefix(PART): tensor for key, tensor in
                                read_tensors(file, names, dtype=dtype, device=device)}  # fmt: skip
    fill(model.decoder, state, where=f"{SETTING}={name!r}")
    module = model.decoder.requires_grad_(False).eval()
    return Decoder(name, module, model.config.scaling_factor, _pixels_per_latent(config))


def _weights(folder: Path) -> Path | None:
    chosen = safe_weights([file.name for file in folder.iterdir()])
    return folder / chosen if chosen else None


def _pixels_per_latent(config: Mapping[str, Any]) -> int:
    """Return the side of the square of pixels behind one latent: each block but the last makes pictures larger."""
    return config.get("upsampling_scaling_factor", 2) ** (len(config.get("decoder_block_out_channels", "1234")) - 1)
