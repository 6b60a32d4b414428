"""What the pipeline's tests share: the command line, run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.cli import main

Result = tuple[int, str, str]


@pytest.fixture
def run_limner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in this process; return exit code, stdout, stderr."""

    def run(*words: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["limner", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
