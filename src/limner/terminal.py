"""How a run looks in the terminal: bars with an estimate, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from limner.watch import Watch

LINE_EVERY_S = 10.0


@contextmanager
def watch_for(silent: bool) -> Iterator[Watch]:
    """Yield the watch that fits where the output goes."""
    if silent:
        yield Watch()
    elif sys.stderr.isatty():
        watch = Bars()
        try:
            yield watch
        finally:
            watch.end()
    else:
        yield Lines()


class Bars(Watch):
    """One live bar per phase, with the time left; a finished phase stays as a line."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.bar = None
        self.name, self.started, self.note = "", 0.0, ""

    def begin(self, phase: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )  # fmt: skip

        self.end()
        self.name, self.started, self.note = phase, time.monotonic(), ""
        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description:<15}"), BarColumn(bar_width=30),
            MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task(phase, total=None, note="")
        self.bar.start()

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self.bar:
            self.note = note
            self.bar.update(self.task, completed=done, total=total, note=note)

    def end(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
            seconds = time.monotonic() - self.started
            self.console.print(f"  {self.name:<15} {seconds:6.1f} s  {self.note}")

    def say(self, text: str) -> None:
        self.console.print(text)


class Lines(Watch):
    """A line when a phase gets going, one every ten seconds with the time left, and one at its end."""

    def __init__(self) -> None:
        self.name, self.started, self.printed, self.note = "", 0.0, 0.0, ""

    def begin(self, phase: str) -> None:
        self.name, self.note, self.started, self.printed = phase, "", time.monotonic(), -LINE_EVERY_S

    def progress(self, done: int, total: int, note: str = "") -> None:
        now, self.note = time.monotonic(), note
        if now - self.printed >= LINE_EVERY_S:
            left = (now - self.started) / max(done, 1) * (total - done)
            print(f"{self.name}: {done}/{total}, about {left:.0f} s left {note}".rstrip(), file=sys.stderr, flush=True)
            self.printed = now

    def end(self) -> None:
        print(f"{self.name}: {time.monotonic() - self.started:.1f} s {self.note}".rstrip(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
