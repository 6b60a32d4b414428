"""A single-file checkpoint in its original layout: which names are whose, and what diffusers calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import UserError
from limner.families.recognise import FAMILIES
from limner.families.weights import read_header, read_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Keep = Callable[[str, "Tensor"], "Tensor"]
"""Brings a tensor, given its name in diffusers, to the form in which it stays."""
OPEN_CLIP = ".model."
"""End of the prefix of a text encoder in OpenCLIP's names; other encoders have the names of transformers."""


def read_part(
    path: Path, family: str, part: str, module: Any, *, dtype: torch.dtype, device: torch.device | str, keep: Keep
) -> dict[str, Tensor]:
    """Return one part's weights under diffusers' names, read in `dtype`; `module` is what they are for.

    Raises:
        UserError: the file does not hold the part, or not all of it.
    """
    from diffusers.loaders import single_file_utils as convert

    prefix = FAMILIES[family].prefixes[part]
    names = [name for name in read_header(path).shapes if name.startswith(prefix)]
    if not names:
        raise UserError(f"base={str(path)!r}: holds no {part.replace('_', ' ')}.", "Give a complete checkpoint.")
    try:
        if part == "unet":  # names alone change: each weight is read when its own is known
            renamed: dict[str, str] = convert.convert_ldm_unet_checkpoint({name: name for name in names}, module.config)
            ours = {theirs: name for name, theirs in renamed.items() if theirs}
            read = read_tensors(path, ours, dtype=dtype, device=device)
            return {ours[name]: keep(ours[name], tensor) for name, tensor in read}
        tensors = dict(read_tensors(path, names, dtype=dtype, device=device))
        if part == "vae":
            state = convert.convert_ldm_vae_checkpoint(tensors, module.config)
        elif prefix.endswith(OPEN_CLIP):
            state = convert.convert_open_clip_checkpoint(module, tensors, prefix)
        else:
            state = convert.convert_ldm_clip_checkpoint(tensors)
    except KeyError as error:
        raise UserError(
            f"base={str(path)!r}: is not complete ({error.args[0]} is missing).", "Get the file again."
        ) from error
    del tensors
    return {name: keep(name, state.pop(name)) for name in list(state) if state[name] is not None}
