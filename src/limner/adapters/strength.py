"""How strongly an adapter acts: one number, and others for parts of the model where they are named."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from limner.errors import UserError

BLOCK = re.compile(r"unet\.((?:down|up)_blocks\.(\d+)|mid_block)\.")


@dataclass(frozen=True)
class Strength:
    """A strength for the whole adapter, and for parts of the model one of their own: the closest name counts.

    Parts are `unet` and in it `down`, `mid`, `up`, `down.0`, `up.1` ...; `text` for all text encoders, or
    `text_encoder` and `text_encoder_2`.
    """

    whole: float = 1.0
    parts: Mapping[str, float] = field(default_factory=dict[str, float])

    def of(self, layer: str) -> float:
        """Return the strength at a layer, by its path from the base's root ("unet.up_blocks.1.attentions.0...")."""
        return next((self.parts[name] for name in names_of(layer) if name in self.parts), self.whole)

    @property
    def said(self) -> float | str:
        """Return it as JSON holds it: a number, or the words that it is given by."""
        return str(self) if self.parts else self.whole

    def __str__(self) -> str:
        parts = [f"{name}={value:g}" for name, value in self.parts.items()]
        return ",".join([*([] if self.whole == 1 and parts else [f"{self.whole:g}"]), *parts])


@cache
def names_of(layer: str) -> tuple[str, ...]:
    """Return the parts of the model that a layer lies in, the smallest first."""
    root = layer.partition(".")[0]
    block = BLOCK.match(layer)
    if block:
        kind = block[1].partition("_")[0]
        return (*([f"{kind}.{block[2]}"] if block[2] else []), kind, root)
    return (root, "text") if root.startswith("text_encoder") else (root,)


def as_strength(given: Strength | float) -> Strength:
    """Return a number as a strength."""
    return given if isinstance(given, Strength) else Strength(float(given))


def parse_strength(text: str, where: str) -> Strength:
    """Read "0.8", "text=0.5,up.1=0" or both, "0.8,up.1=0"; `where` begins a message.

    Raises:
        UserError: a word is no number, or a part is named twice.
    """
    whole, parts = 1.0, dict[str, float]()
    for place, word in enumerate(text.split(",")):
        name, equals, number = word.rpartition("=")
        value = _number(number, where)
        if equals and name not in parts:
            parts[name] = value
        elif not equals and place == 0:
            whole = value
        else:
            raise UserError(f"{where}: {word!r} is one too many.", "Write FILE:0.8,up.1=0 with each part named once.")
    return Strength(whole, parts)


def check_parts(strength: Strength, layers: Iterable[str], where: str) -> None:
    """Refuse a part of the model that none of these layers lies in, given by their paths from the base's root.

    Raises:
        UserError: lists the parts that there are.
    """
    known = {name for layer in layers for name in names_of(layer)} if strength.parts else set[str]()
    for part in strength.parts:
        if part not in known:
            raise UserError(f"{where}: there is no part {part!r}.", f"The parts are {', '.join(sorted(known))}.")


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    raise UserError(f"{where}: {text!r} is not a number.", "Write FILE:0.8, or FILE:0.8,text=0.5,up.1=0.")
