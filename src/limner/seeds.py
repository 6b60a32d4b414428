"""Seeds from words and numbers: every random draw is keyed by what it is for, never by what was drawn before it."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: str | int) -> int:
    """Return a seed in [0, 2^63) that depends on every part, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `seed_of(*parts)`.

    Keyed by (seed, step, purpose), draws need no state: a resumed run makes the same ones as an uninterrupted run.
    """
    return torch.Generator().manual_seed(seed_of(*parts))
