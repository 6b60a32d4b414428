"""Compiled blocks give what eager ones give, each with the adapter of its own, and are gone outside of training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_compiled_equals_eager(random_base: Path, root: Path) -> None:
    """The blocks are traced and differentiated ahead of time; no kernel is made of that, and so it takes seconds."""
    words = ["-m", "tests.unit.train.compiling", str(random_base), "cpu", "aot_eager", "eager"]
    told = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["blocks"] == 12
    assert found["graphs"] == 12, "each block in one piece, compiled once"
    assert not found["breaks"]
    assert found["apart"] < 1e-4
    assert not found["left"], "what is drawn afterwards uses the blocks as they are"
