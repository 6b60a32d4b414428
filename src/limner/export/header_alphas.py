"""What a LoRA's header says of alpha, where no tensor does, and where it contradicts the tensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from limner.adapters.deltas import Delta
from limner.errors import UserError
from limner.export.lora_names import canonical

SPEC, CONFIGS = "limner_adapter", "peft"
"""Limner's own keys: the settings of an adapter of peft's, and peft's own config of each part."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings, by `<part>.<setting>`."""
TRIED = re.compile(r"\^?(?:[\w.|]|\\[.dw]|[*+]|\((?:[\w.|]|\\[.dw])*\)(?![*+])|\[[\w-]*\])+\$?")
"""Patterns that are tried on layers' names: words, dots and alternatives; no group is repeated."""
MOST_REPEATS = 3
"""How many `*` and `+` a pattern may have: what it takes to try it grows with the length of a name to that power."""
BESIDE = "adapter_config.json"
"""Where peft keeps its settings: beside the weights."""


class HeaderAlphas:
    """peft's settings of each part of a file: rank, alpha, and the layers that have others."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path, self._metadata = path, metadata
        self._parts = _by_part(path, metadata)
        self.is_peft = bool(self._parts)

    def choose(self, layer: str, rank: int, found: float | None) -> float | None:
        """Return a layer's alpha: the tensor's, else the header's, else none. Without a rank it is the scale.

        Raises:
            UserError: both are there and differ.
        """
        said = self._said(layer, rank)
        if found is not None and said is not None and not math.isclose(found, said, rel_tol=0.01):
            raise self._conflict(found, said, layer)
        return said if found is None else found

    def refuse_conflict(self, alphas: Mapping[str, float], layers: Mapping[str, Delta]) -> None:
        """Raise where kohya's header names an alpha that no tensor has, though the rank that it names is there."""
        said, rank = (self._metadata.get(f"ss_network_{name}", "") for name in ("alpha", "dim"))
        if (
            not alphas
            or not _is_number(said)
            or not float(said)
            or str(rank) not in {str(c.rank) for c in layers.values()}
        ):
            return
        if not any(math.isclose(alpha, float(said), rel_tol=0.01) for alpha in alphas.values()):
            first = next(iter(alphas))
            raise self._conflict(alphas[first], float(said), first)

    def _conflict(self, found: float, said: float, layer: str) -> UserError:
        return UserError(
            f"{self._path}: alpha tensor says {found:g}, metadata says {said:g} for {layer}.",
            "Write it with the one that holds: limner export FILE --to kohya --alpha N.",
        )

    def _said(self, layer: str, rank: int) -> float | None:
        part, _, path = layer.partition(".")
        settings = self._parts.get(part, self._parts.get("", {}))
        alpha = settings.get("lora_alpha", settings.get("alpha"))
        own = _of_pattern(settings.get("alpha_pattern"), part, path, self._path)
        alpha = alpha if own is None else own
        if not isinstance(alpha, int | float):
            return None
        if not rank:  # peft scales even factors that are whole
            return float(alpha) / (r if isinstance(r := settings.get("r"), int) and r > 0 else 1)
        return float(alpha) * math.sqrt(rank) if settings.get("use_rslora") else float(alpha)


def method_of(metadata: Mapping[str, str]) -> str:
    """Return the name of peft's method that a file of Limner's is of."""
    return str(_read(metadata.get(SPEC, "")).get("method", "unknown"))


def _by_part(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    flat = _read(metadata.get(METADATA, ""))
    parts: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    parts |= {part: value for part, value in _read(metadata.get(CONFIGS, "")).items() if isinstance(value, dict)}
    beside = path.parent / BESIDE
    if not parts and path.name.startswith("adapter_model.") and beside.is_file():
        parts[""] = _read(beside.read_text(encoding="utf-8", errors="replace"))
    return parts


def require_tried(patterns: Iterable[str], where: Path) -> None:
    """Refuse a pattern on layers' names that may take for ever to try, or is none at all.

    Raises:
        UserError: names it.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
            tried = TRIED.fullmatch(pattern) and pattern.count("*") + pattern.count("+") <= MOST_REPEATS
        except re.error:
            tried = None
        if not tried:
            raise UserError(f"{where}: the pattern {pattern!r} of its settings is none that Limner tries.",
                            "Write the layers' paths there, or save the adapter anew without patterns.")  # fmt: skip


def _of_pattern(patterns: object, part: str, path: str, where: Path) -> float | None:
    """Return the number of the first pattern that a layer's path, or its end after a dot, is an instance of.

    Raises:
        UserError: as `require_tried`.
    """
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        require_tried([pattern], where)
        hit = re.match(rf"(.*\.)?({pattern})$", path)  # as peft has it
        if isinstance(value, int | float) and (hit or f"{part}.{path}" == canonical(f"{part}.{pattern}")):
            return float(value)
    return None


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
