"""A watch that keeps what is said."""

from __future__ import annotations

from limner.watch import Watch


class Lines(Watch):
    """Keeps the lines that are said, and the phases that begin."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.phases: list[str] = []

    def begin(self, phase: str) -> None:
        self.phases.append(phase)

    def say(self, text: str) -> None:
        self.said.append(text)
