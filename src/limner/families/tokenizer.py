"""The tokenizer of a base alone, before any of its weights are read."""

from __future__ import annotations

from typing import Any

from limner.families.load import locate

CLIP = "openai/clip-vit-large-patch14"
"""Whose tokenizer every SD 1.x and SDXL base has; single files hold none."""
FEWEST_PIECES = 512
"""Every byte, inside a word and at its end: what any vocabulary of CLIP's kind has."""


def load_tokenizer(name: str) -> Any | None:
    """Return the tokenizer of the base called `name`, or None where it cannot be had.

    A hub name's is read from the hub's cache, else from the hub; a single file's is CLIP's, if this machine has it.
    """
    from transformers import CLIPTokenizer

    path = locate(name)
    try:
        if path is None:
            found = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
        elif path.is_file():
            found = CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)
        else:
            found = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
    except (OSError, ValueError):
        return None
    return found if len(found) >= FEWEST_PIECES else None  # the library makes an empty one where it finds no files
