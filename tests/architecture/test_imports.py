"""Imports only go down; importing the package, or asking for help, is quick because it loads no heavy library."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limner.families.recognise import FAMILIES
from tests.architecture.sources import sources

HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "matplotlib",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "PIL",
    "gradio",
    "ray",
}
"""Libraries that a command line which only answers `--help` must not pay for."""


def test_imports_only_go_down(root: Path) -> None:
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running `code`."""
    report = "import json, sys; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded_by("import limner")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["limner", *{arguments!r}]
from limner.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""
    assert not HEAVY & loaded_by(code)


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    code = "import limner, limner.cli, limner.run, limner.recipe"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_only_the_families_folder_tells_one_family_from_another() -> None:
    keys = set(FAMILIES)
    named = [
        f"{source.name}:{node.lineno}: {node.value!r}"
        for source in sources("src")
        if "/families/" not in source.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and node.value in keys
    ]
    assert not named
