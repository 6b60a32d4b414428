"""How a run looks in the terminal: bars with an estimate, or plain lines where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from limner.watch import Watch

if TYPE_CHECKING:
    from rich.console import Group

LINE_EVERY_S = 10.0
WIDEST = 100
"""A bar is no wider than so many columns."""


@contextmanager
def watch_for(silent: bool) -> Iterator[Watch]:
    """Yield the watch that fits where the output goes."""
    if silent:
        yield Watch()
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        watch = Bars()
        try:
            yield watch
        finally:
            watch.end()
    else:
        yield Lines()


class Bars(Watch):
    """One live view per phase: a bar with the time left, and under it what the phase tells; it ends as a line.

    What is said stays above the bar. Rich heeds NO_COLOR and the width of the terminal, which may change.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.live = None
        self.name, self.started, self.note = "", 0.0, ""

    def begin(self, phase: str) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        self.end()
        self.name, self.started, self.note = phase, time.monotonic(), ""
        fixed = Column(no_wrap=True)
        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", table_column=fixed),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[count]}", table_column=fixed), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", table_column=fixed), TimeRemainingColumn(), expand=True,
        )  # fmt: skip
        self.task = self.bar.add_task(phase, total=None, count="", left="")
        self.live = Live(get_renderable=self.view, console=self.console, transient=True, refresh_per_second=8)
        self.live.start()

    def view(self) -> Group:
        """Return the bar, and what the phase tells in lines that are cut at the terminal's edge."""
        from rich.console import Group
        from rich.constrain import Constrain
        from rich.text import Text

        told = [Text(f"  {line}", "dim", no_wrap=True, overflow="ellipsis") for line in self.note.splitlines()]
        return Group(Constrain(self.bar, WIDEST), *told)

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self.live:
            self.note = note
            self.bar.update(self.task, completed=done, total=total, count=f"{done}/{total}", left="left")

    def end(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None
            self.console.print(_ended(self.name, self.started, self.note))

    def say(self, text: str) -> None:
        self.console.print(text, style="yellow" if text.startswith("warning:") else None)


class Lines(Watch):
    """A line when a phase gets going, one every ten seconds with the time left, and one at its end."""

    def __init__(self) -> None:
        self.name, self.started, self.printed, self.note = "", 0.0, 0.0, ""
        self.first: tuple[float, int] | None = None

    def begin(self, phase: str) -> None:
        self.name, self.note, self.started, self.printed = phase, "", time.monotonic(), -LINE_EVERY_S
        self.first = None

    def progress(self, done: int, total: int, note: str = "") -> None:
        now, self.note = time.monotonic(), note
        since, already = self.first = self.first or (now, done)  # a resumed run begins in the middle
        if now - self.printed >= LINE_EVERY_S:
            left = f"about {_clock((now - since) / (done - already) * (total - done))} left" if done > already else ""
            line = ", ".join(filter(None, [f"{self.name}: {done}/{total}", left, *note.splitlines()]))
            print(line, file=sys.stderr, flush=True)
            self.printed = now

    def end(self) -> None:
        print(_ended(self.name, self.started, self.note), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _ended(name: str, started: float, note: str) -> str:
    return f"{name}: {time.monotonic() - started:.1f} s {note.partition(chr(10))[0]}".rstrip()


def _clock(seconds: float) -> str:
    """Return a time as h:mm:ss, as the bar does."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
