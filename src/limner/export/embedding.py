"""Textual-inversion embeddings: one file that diffusers, A1111 and ComfyUI load, and theirs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import UserError
from limner.export.modelspec import modelspec
from limner.export.tensors import HEADER, header, read_tensors, write_tensors

Vectors = dict[str, Float[Tensor, "vectors width"]]
"""Vectors of one token for each text encoder: "clip_l" (SD 1.x), "clip_l" and "clip_g" (SDXL)."""
ENCODERS = ("clip_l", "clip_g")
NAMELESS = ("emb_params", "*", *ENCODERS)
"""Keys that other programs use where ours has the token: there, the file's name is the token."""


def write_embedding(vectors: Mapping[str, Tensor], path: Path, *, token: str, about: Mapping[str, object]) -> Path:
    """Write the vectors of one token to a safetensors file and return its path.

    SD 1.x: the only key is the token, where diffusers looks for it; A1111 and ComfyUI take any single tensor and make
    the file's name the word, so name the file after the token. SDXL: "clip_l" and "clip_g", as they all expect.
    """
    strange = sorted(vectors.keys() - set(ENCODERS))
    if "clip_l" not in vectors or strange or any(tensor.ndim != 2 for tensor in vectors.values()):
        found = {name: tuple(tensor.shape) for name, tensor in vectors.items()}
        raise ValueError(f"an embedding of {found}: wanted clip_l and perhaps clip_g, each [vectors, width]")
    if not token or token != "".join(token.split()) or token in NAMELESS:
        raise UserError(f"the token {token!r} cannot name an embedding.", "Use one word without spaces, such as <dog>.")
    said = {**about, "token": token}
    tensors = dict(vectors) if len(vectors) > 1 else {token: vectors["clip_l"]}
    write_tensors(path, tensors, header(said, modelspec(said, adapter="textual-inversion")))
    return path


def read_embedding(path: Path, *, widths: Mapping[str, int] | None = None) -> tuple[str, Vectors]:
    """Return an embedding's token and vectors, from any of the files in use; `widths` is what the base needs.

    Read are: one tensor under its token (ours, diffusers), `emb_params`, A1111's `string_to_param`, and SDXL's
    `clip_l` with `clip_g`; as .safetensors, or as .pt and .bin without running anything in them.

    Raises:
        UserError: the file is missing, damaged, no embedding, or not as wide as the base needs.
    """
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        named = json.loads(metadata.get(HEADER, "{}")).get("token")
    else:
        loaded = _read_pickled(path)
        inner = loaded.get("string_to_param")
        tensors, named = (inner, loaded.get("name")) if isinstance(inner, Mapping) else (loaded, None)
    keys = sorted(tensors)
    values = list(tensors.values())
    several = keys == sorted(ENCODERS)
    if not (several or len(keys) == 1) or not all(isinstance(v, Tensor) and v.ndim in (1, 2) for v in values):
        raise UserError(
            f"{path}: is not an embedding (it holds {', '.join(map(str, keys[:4])) or 'nothing'}).",
            "Use a textual-inversion file: one tensor [vectors, width], or clip_l and clip_g for SDXL.",
        )
    encoders = {name: tensors[name] for name in ENCODERS} if several else {"clip_l": values[0]}
    vectors = {name: v.detach().reshape(-1, v.shape[-1]) for name, v in encoders.items()}
    token = str(named or (keys[0] if keys[0] not in NAMELESS else path.stem))
    _require_widths(path, vectors, widths)
    return token, vectors


def _require_widths(path: Path, vectors: Vectors, widths: Mapping[str, int] | None) -> None:
    found = {name: tensor.shape[1] for name, tensor in vectors.items()}
    if widths is not None and found != dict(widths):
        has, needs = (" + ".join(str(w[name]) for name in ENCODERS if name in w) for w in (found, widths))
        raise UserError(
            f"{path}: the embedding is {has} wide, and the base needs {needs}.",
            "Use an embedding that was trained for this base's family.",
        )


def _read_pickled(path: Path) -> Mapping[str, Any]:
    """Read a .pt or .bin file, tensors and plain values only."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.", "Give the path of an embedding.") from None
    except Exception as error:  # whatever is wrong with the file, it was not loaded
        raise UserError(
            f"{path}: is damaged, or holds more than tensors, and such a file is never run.",
            "Get the embedding as .safetensors.",
        ) from error
    return loaded if isinstance(loaded, Mapping) else {}
