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
from limner.export.modelspec import HEADER, modelspec
from limner.export.tensors import header, read_tensors, write_tensors

Vectors = dict[str, Float[Tensor, "vectors width"]]
"""Vectors of one word for each text encoder, by the encoder's name in the base; `attach_words` takes them so."""
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What SDXL files call the two encoders."""
NAMELESS = ("emb_params", "*", *ENCODERS.values())
"""Keys that other programs use where ours has the token: there, the file's name is the token."""


def write_embedding(vectors: Mapping[str, Tensor], path: Path, *, token: str, about: Mapping[str, object]) -> Path:
    """Write the vectors of one token to a safetensors file and return its path.

    SD 1.x: the only key is the token, where diffusers looks for it; A1111 and ComfyUI take any single tensor and make
    the file's name the word, so name the file after the token. SDXL: "clip_l" and "clip_g", as they all expect.
    """
    if list(vectors) not in (["text_encoder"], list(ENCODERS)) or any(t.ndim != 2 for t in vectors.values()):
        found = {name: tuple(tensor.shape) for name, tensor in vectors.items()}
        raise ValueError(f"an embedding of {found}: wanted [vectors, width] of {' and perhaps '.join(ENCODERS)}")
    if not token or token != "".join(token.split()) or token in NAMELESS:
        raise UserError(f"the token {token!r} cannot name an embedding.", "Use one word without spaces, such as <dog>.")
    said = {**about, "token": token}
    several = len(vectors) > 1
    tensors = {ENCODERS[name] if several else token: tensor for name, tensor in vectors.items()}
    write_tensors(path, tensors, header(said, modelspec(said, adapter="textual-inversion")))
    return path


def read_embedding(path: Path) -> tuple[str, Vectors]:
    """Return an embedding's token and vectors, from any of the files in use.

    Read are: one tensor under its token (ours, diffusers), `emb_params`, A1111's `string_to_param`, and SDXL's
    `clip_l` with `clip_g`; as .safetensors, or as .pt and .bin without running anything in them.

    Raises:
        UserError: the file is missing, damaged or no embedding.
    """
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        named = json.loads(metadata.get(HEADER, "{}")).get("token")
    else:
        loaded = _read_pickled(path)
        inner = loaded.get("string_to_param")
        tensors, named = (inner, loaded.get("name")) if isinstance(inner, Mapping) else (loaded, None)
    keys = list(tensors)
    several = set(keys) == set(ENCODERS.values())
    fits = all(isinstance(tensor, Tensor) and tensor.ndim in (1, 2) for tensor in tensors.values())
    if not fits or not (several or len(keys) == 1):
        raise UserError(
            f"{path}: is not an embedding (it holds {', '.join(map(str, keys[:4])) or 'nothing'}).",
            "Use a textual-inversion file: one tensor [vectors, width], or clip_l and clip_g for SDXL.",
        )
    found = {name: tensors[key] for name, key in ENCODERS.items()} if several else {"text_encoder": tensors[keys[0]]}
    token = str(named or (keys[0] if keys[0] not in NAMELESS else path.stem))
    return token, {name: tensor.detach().reshape(-1, tensor.shape[-1]) for name, tensor in found.items()}


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
