"""How long work is watched: a phase with a bar, lines said in between. The plain Watch is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Sees a run go by and says nothing; the terminal and the line mode of the command line are its louder members."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase from its beginning to its end."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, phase: str) -> None:
        """A phase begins: "prepare", "train" ..."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """So much of the phase is done; `note` is what to show under it, and its first line when the phase ends."""

    def end(self) -> None:
        """The phase has ended."""

    def say(self, text: str) -> None:
        """A line that the user should read."""
