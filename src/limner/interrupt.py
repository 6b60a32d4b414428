"""Ctrl-C, SIGTERM and SIGHUP: the first one ends the work tidily, the second one at once."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
EXIT_CODE = 130
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stoppable() -> Iterator[None]:
    """Within this block, a whole program, the first signal is a KeyboardInterrupt and the second ends the process."""
    with _handled_by(_stop, {}):
        yield


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within this block the first signal is only noted in the yielded list; the second does what it did before."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        _heed_hangup(number)
        for other, handler in previous.items():
            signal.signal(other, _leave if handler is _stop else handler)

    with _handled_by(note, previous):
        yield received


def leave_at_the_next() -> None:
    """Let a signal end the process from now on: its last words are said."""
    for number in SIGNALS:
        signal.signal(number, _leave)


@contextmanager
def _handled_by(handler: Handler, previous: dict[int, Any]) -> Iterator[None]:
    """Handle signals, but for those that are ignored (nohup); `previous` takes each one's handler until now.

    It is filled before the handler is there: a signal may come between the two. Only a program's main thread may
    handle signals: whoever runs us in another stops us by leaving the iterator.
    """
    try:
        for number in SIGNALS if current_thread() is main_thread() else ():
            if (earlier := signal.getsignal(number)) is not signal.SIG_IGN:
                previous[number] = earlier
                signal.signal(number, handler)
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _stop(number: int, _frame: FrameType | None) -> None:
    leave_at_the_next()
    _heed_hangup(number)
    raise KeyboardInterrupt


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End the process here and now: every file is whole, or has a name that the next run removes."""
    show_cursor = "\033[?25h" if os.isatty(2) else ""  # a bar hides it
    os.write(2, f"{show_cursor}\nStopped at once.\n".encode())
    os._exit(EXIT_CODE)


def _heed_hangup(number: int) -> None:
    """Let what is said from now on go nowhere when the terminal is gone: to write there would be an error."""
    if hasattr(signal, "SIGHUP") and number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
