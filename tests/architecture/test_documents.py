"""The documents name what is there: CONTRIBUTING's paths, README's tree, the pages of the documentation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TREE_ROW = re.compile(r"^(?P<indent> *)(?P<name>[a-z0-9_]+(?:\.py|/))\s+(?P<says>\S.*)$")


def paths_in(text: str) -> list[str]:
    """Return everything in backticks that is written as a path of the repository."""
    return [found for found in re.findall(r"`([\w./-]+)`", text) if "/" in found]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/why.md"])
def test_named_paths_exist(root: Path, page: str) -> None:
    named = paths_in((root / page).read_text(encoding="utf-8"))
    assert named
    assert not [path for path in named if not (root / path).exists()]


def readme_tree(root: Path) -> dict[str, str]:
    """Return path -> description of the tree under `src/limner/` in the README (empty without one)."""
    text = (root / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\w*\nsrc/limner/[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    rows = [TREE_ROW.match(line) for line in block.group(1).splitlines()] if block else []
    return {row["name"]: row["says"].strip() for row in rows if row}


def test_readme_tree_says_what_the_modules_say(root: Path) -> None:
    tree = readme_tree(root)
    assert tree, "README.md has no block that begins with the line src/limner/"
    for name, says in tree.items():
        path = root / "src/limner" / name
        module = path / "__init__.py" if path.is_dir() else path
        if path.is_dir() and not module.exists():
            continue  # a folder of data has no docstring
        first = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n")[0]
        assert says.rstrip(".") == first.rstrip("."), f"README says of {name}: {says!r}; the module says: {first!r}"


def test_readme_tree_is_complete(root: Path) -> None:
    package = root / "src/limner"
    there = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    there |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert there <= set(readme_tree(root)), f"not in the README: {sorted(there - set(readme_tree(root)))}"
