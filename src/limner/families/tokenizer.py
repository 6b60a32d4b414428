"""The tokenizers of a base, alone, before any of its weights are read."""

from __future__ import annotations

from typing import Any

from limner.errors import UserError
from limner.families.recognise import Recognised, recognise
from limner.families.source import ASSETS, TOKENIZERS, locate

FEWEST_PIECES = 512
"""Every byte, inside a word and at its end: what any vocabulary of CLIP's kind has."""
CLIP = ASSETS / "sd15" / "tokenizer"
"""The one vocabulary of SD 1.x and SDXL, for single files, which carry none."""


def load_tokenizer(name: str) -> Any | None:
    """Return the (first) tokenizer of the base called `name`, or None where it cannot be had.

    A hub name's is read from the hub's cache, else from the hub; a single file's is the one that Limner brings.

    Raises:
        UserError: there is no such base.
    """
    base = recognise(name) if locate(name) is not None else None
    for part in TOKENIZERS:
        try:
            return read_tokenizer(name, subfolder=part) if base is None else tokenizer_of(base, part)
        except (OSError, ValueError, UserError):
            continue
    return None


def tokenizer_of(base: Recognised, part: str) -> Any:
    """Return a base's "tokenizer" or "tokenizer_2".

    Raises:
        UserError: its folder holds none.
    """
    folder = base.configurations / part
    if base.path.is_file() and not folder.is_dir():
        return read_tokenizer(str(CLIP), local_files_only=True, **({"pad_token": "!"} if part == "tokenizer_2" else {}))
    of_hub = locate(base.name) is None and not folder.is_dir()  # of its files only the configurations are here
    where = {"subfolder": part} if of_hub else {"local_files_only": True}
    tokenizer = read_tokenizer(base.name if of_hub else str(folder), **where)
    if tokenizer is None:
        raise UserError(f"{folder}: holds no tokenizer.", "It needs vocab.json and merges.txt, or tokenizer.json.")
    return tokenizer


def read_tokenizer(source: str, **more: Any) -> Any | None:
    """Return CLIP's tokenizer of a folder or hub name, or None for the empty one that stands for no files."""
    from transformers import CLIPTokenizer

    found = CLIPTokenizer.from_pretrained(source, **more)
    return found if len(found) >= FEWEST_PIECES else None
