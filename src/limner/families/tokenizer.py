"""The tokenizer of a base alone, before any of its weights are read."""

from __future__ import annotations

from typing import Any

from limner.families.recognise import recognise
from limner.families.source import locate

FEWEST_PIECES = 512
"""Every byte, inside a word and at its end: what any vocabulary of CLIP's kind has."""


def load_tokenizer(name: str) -> Any | None:
    """Return the tokenizer of the base called `name`, or None where it cannot be had.

    A hub name's is read from the hub's cache, else from the hub; a single file's is the one that Limner brings.

    Raises:
        UserError: there is no such base.
    """
    try:
        if locate(name) is None:
            return read_tokenizer(name, subfolder="tokenizer")
        return read_tokenizer(str(recognise(name).configurations / "tokenizer"), local_files_only=True)
    except (OSError, ValueError):
        return None


def read_tokenizer(source: str, **where: Any) -> Any | None:
    """Return CLIP's tokenizer of a folder or hub name, or None for the empty one that stands for no files."""
    from transformers import CLIPTokenizer

    found = CLIPTokenizer.from_pretrained(source, **where)
    return found if len(found) >= FEWEST_PIECES else None
