"""The project's own source files, parsed once."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("src", "tests", "pretraining", "benchmarks", "docs")
"""Every folder that holds Python."""


@dataclass(frozen=True)
class Source:
    """One Python file: where it is, its lines and its syntax tree."""

    path: Path
    lines: tuple[str, ...]
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    def calls(self) -> list[ast.Call]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Read every Python file under the given folders, in order of path; no file at all is an error."""
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    if not found:
        raise FileNotFoundError(f"no Python file under {', '.join(folders)} of {ROOT}")
    texts = [path.read_text(encoding="utf-8") for path in found]
    return tuple(
        Source(path, tuple(text.splitlines()), ast.parse(text)) for path, text in zip(found, texts, strict=True)
    )


def keyword(call: ast.Call, name: str) -> object:
    """Return the constant given for a keyword of a call; None when absent, the node itself when not a constant."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None
