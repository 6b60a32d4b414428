"""What is typed: at a terminal while it is typed, from anything else line by line."""

from __future__ import annotations

import codecs
import os
import re
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

try:
    import termios
    import tty
except ImportError:  # Windows: lines only
    termios = tty = None

END, ENTER, CLEAR, WORD, BACK = "\x04", "\r\n", "\x15", "\x17", "\x08\x7f"
"""Ctrl-D; Enter, which begins the next prompt; Ctrl-U; Ctrl-W; Backspace."""
SEQUENCE = re.compile(r"\x1b(\[[0-9;]*[ -/]*[@-~]|O.)?")
"""What arrow and function keys send, which means nothing here."""


def typed(stream: TextIO, show: Callable[[str], None]) -> Iterator[str]:
    """Yield prompts as they come, until the end of the input: Ctrl-D at a terminal.

    At a terminal the text is yielded as it stands each time that something was typed since the last one was taken, so
    that whoever draws it always draws the newest; `show` gets it at once. From a file or a pipe every line is yielded.
    """
    if tty is None or not stream.isatty():
        yield from (line.rstrip("\r\n") for line in stream)
        return
    with _unbuffered(stream.fileno()):
        yield from _texts(stream.fileno(), show)


def edited(text: str, keys: str) -> tuple[str, bool]:
    """Return a line of text after some keys, and whether one of them ends the input."""
    for key in SEQUENCE.sub("", keys):
        if key == END:
            return text, True
        if key in ENTER or key == CLEAR:
            text = ""
        elif key in BACK:
            text = text[:-1]
        elif key == WORD:
            text = re.sub(r"\S*\s*$", "", text)
        elif key.isprintable():
            text += key
    return text, False


def _texts(descriptor: int, show: Callable[[str], None]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    text, is_over = "", False
    while not is_over:
        before = text
        select.select([descriptor], [], [])  # nothing to draw until a key is pressed
        while not is_over and select.select([descriptor], [], [], 0)[0]:
            data = os.read(descriptor, 4096)
            text, is_over = edited(text, decoder.decode(data)) if data else (text, True)
        show(text)
        if text != before:
            yield text


@contextmanager
def _unbuffered(descriptor: int) -> Iterator[None]:
    """Within this block the terminal hands over each key at once, and does not show it itself."""
    assert termios is not None
    assert tty is not None
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)  # what was typed ahead stays
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
