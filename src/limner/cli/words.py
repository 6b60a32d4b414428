"""The words of a command line: paths, key=value settings, seeds and strengths; and the paths that a verb made."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import UserError
from limner.ranks import started

if TYPE_CHECKING:
    from limner.adapters.strength import Strength

SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def paths_and_settings(words: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """Sort arguments into paths and key=value settings; a path that exists is a path whatever its name."""
    from limner.recipe import setting_names

    paths = [w for w in words if not SETTING.match(w) or os.path.exists(w)]  # a very long value is no error to it
    known = {setting.name for setting in setting_names()}
    for word in paths:
        if word in known and not os.path.exists(word):
            raise UserError(f"{word}: is a setting without its value.", f"Write {word}=...")
    return [Path(p) for p in paths], read_settings([w for w in words if w not in paths])


def read_settings(words: list[str]) -> dict[str, Any]:
    """Read key=value words."""
    from limner.recipe import parse_settings

    return parse_settings(words)


def file_and_strength(text: str, what: str = "--adapter ") -> tuple[Path, Strength]:
    """Read FILE, FILE:0.8 or FILE:0.8,text=0.5,up.1=0; `what` names the words in messages."""
    from limner.adapters.strength import Strength, parse_strength

    path, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), Strength()
    return Path(path), parse_strength(strength, f"{what}{text}")


def read_seeds(text: str) -> list[int]:
    """Read how many seeds, or a list of them."""
    numbers = [_number(part, f"--seeds {text}", int) for part in text.split(",")]
    if "," not in text and numbers[0] < 1:
        raise UserError(f"--seeds {text}: draws nothing.", "Give how many, or a list such as 7,8.")
    return numbers if "," in text else list(range(numbers[0]))


def _number(text: str, where: str, kind: Callable[[str], Any]) -> Any:
    try:
        number = kind(text)
        if math.isfinite(number):
            return number
    except ValueError:
        pass
    raise UserError(f"{where}: {text!r} is not a number.", "See: limner generate --help")


def print_made(as_json: bool, **made: Path) -> None:
    """Print the paths of what was made: the last line is the one to open. One of several processes does it."""
    if not started().is_first:
        return
    if as_json:
        print(json.dumps({name: str(path) for name, path in made.items()}))
        return
    for name, path in made.items():
        print(f"{name}: {path}" if len(made) > 1 else path)
