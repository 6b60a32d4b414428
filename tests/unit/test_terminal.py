"""The terminal: a live view in a real pseudo-terminal, whatever its width; plain lines elsewhere; a bug in one line."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from limner import recipe
from limner.cli import main
from limner.terminal import Lines, watch_for
from limner.watch import Watch

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX's")
SHOWN = """
import sys, time
from limner.terminal import watch_for
with watch_for(False) as watch:
    watch.say("in [brackets]")
    with watch.phase("load"):
        time.sleep(0.3)
    with watch.phase("train"):
        for i in range(1, 21):
            watch.progress(i, 300, "loss 0.123, 2.1 steps/s, lr 0.0001, 1.2 GiB\\npreview: " + "/long" * 30)
            if i == 10:
                watch.say("warning: something")
            time.sleep(0.03)
"""


def shown(columns: int, later: int | None = None, **environment: str) -> str:
    """Return what a process writes to a terminal of so many columns, and after a while of `later` columns."""
    parent, child = pty.openpty()

    def resize(to: int) -> None:
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, to, 0, 0))

    resize(columns)
    known = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen([sys.executable, "-c", SHOWN], stdin=child, stdout=child, stderr=child,
                               env={**known, "TERM": "xterm-256color", **environment})  # fmt: skip
    written = b""
    while b"train" not in written:
        written += os.read(parent, 4096)
    if later:
        resize(later)
    os.close(child)
    try:
        while block := os.read(parent, 4096):
            written += block
    except OSError:  # Linux says so that the other side is closed
        pass
    os.close(parent)
    assert process.wait() == 0, written.decode()
    return written.decode()


def frames(written: str) -> list[str]:
    """Return the lines as they stood at any time, without what moves the cursor and colours it."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", written)) if line]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_live_view_fits_and_ends_as_a_line(columns: int) -> None:
    lines = frames(shown(columns))
    assert max(len(line) for line in lines) <= columns
    bars = [line for line in lines if "train ━" in line or "train ╺" in line or "train ╸" in line]
    assert bars
    assert any(re.search(r"\d+/300 \d:\d\d:\d\d left", line) for line in bars)
    assert any(line.startswith("  loss 0.123, 2.1 steps/s") for line in lines)
    assert any(re.match(r"  preview: /long.*…$", line) for line in lines if columns < 150) or columns == 200
    assert "in [brackets]" in lines
    assert [line for line in lines if re.fullmatch(r"load: 0\.\d s", line)]
    assert "warning: something" in lines
    assert re.match(r"train: \d+\.\d s loss 0.123", lines[-1] if columns > 60 else lines[-2])


def test_a_terminal_that_gets_narrower_is_no_trouble() -> None:
    assert any("300" in line and len(line) <= 50 for line in frames(shown(120, later=50)))


def test_no_color_is_heeded() -> None:
    coloured = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-9]|9[0-7])[;m]")
    assert coloured.search(shown(80))
    assert not coloured.search(shown(80, NO_COLOR="1"))


def test_a_dumb_terminal_gets_plain_lines() -> None:
    written = shown(80, TERM="dumb")
    assert "\x1b" not in written
    assert re.search(r"train: 1/300, loss 0.123", written)


def test_lines_estimate_a_resumed_run_by_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begin("train")
    for done in (901, 902, 903):
        time.sleep(0.02)
        lines.printed = -1e9
        lines.progress(done, 1000, "loss 1\npreview: x")
    lines.end()
    told = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"train: 903/1000, about 0:00:0[2-4] left, loss 1, preview: x", told[2]), told
    assert re.fullmatch(r"train: \d.\d s loss 1", told[-1])


def test_json_is_silent() -> None:
    with watch_for(True) as watch:
        assert type(watch) is Watch


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        MemoryError(),
    ],
)
def test_too_little_memory_is_no_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_key: str) -> str:
        raise error

    monkeypatch.setattr(recipe, "explain", full)
    monkeypatch.setattr(sys, "argv", ["limner", "explain", "steps"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert re.match(r"Out of memory: .*\. Set gradient_checkpointing=true", told)
    assert len(told.splitlines()) == 1


def test_a_bug_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_key: str) -> str:
        raise KeyError("no\nsuch thing")

    monkeypatch.setattr(recipe, "explain", broken)
    monkeypatch.setattr(sys, "argv", ["limner", "explain", "steps"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (1, "", 1)
    found = re.match(
        r"This is a bug in Limner: KeyError: .*\. Please report it with (\S+\.log), which says where\.", err
    )
    assert found
    told = Path(found[1]).read_text()
    assert told.startswith("limner explain steps\n")
    assert "Traceback (most recent call last)" in told
    Path(found[1]).unlink()
