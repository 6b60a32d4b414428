"""A watch that keeps what is said."""

from __future__ import annotations

from limner.watch import Watch


class Lines(Watch):
    """Keeps the lines that are said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
