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


class Draws:
    """The generators of a step's draws, one for each slot and pass, on one device; each is seeded anew for its step."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._kept: dict[tuple[int, int], torch.Generator] = {}

    def of(self, slot: int, part: int) -> torch.Generator:
        """Return the generator of a slot and a pass: the same one at every step."""
        if (slot, part) not in self._kept:
            self._kept[slot, part] = torch.Generator(self.device)
        return self._kept[slot, part]

    def seeded(self, slot: int, part: int, *parts: str | int) -> torch.Generator:
        """Return that generator, seeded as `generator(*parts)` is."""
        return self.of(slot, part).manual_seed(seed_of(*parts))
