"""What several runs at once show: their lines each with its name, and one view with how far each of them is."""

from __future__ import annotations

from collections.abc import Sequence

from limner.watch import Watch

MOST_ROWS = 16
"""So many runs are shown at once; of the others their number."""


class Board:
    """Gathers the steps of several runs under one bar: all steps together, and a row for each that trains."""

    def __init__(self, watch: Watch, names: Sequence[str]) -> None:
        self._watch, self._width = watch, max(map(len, names))
        self._rows: dict[str, tuple[int, int, str]] = {}
        self._said: set[str] = set()
        self._waiting: Sequence[str] = ()

    def watch_of(self, name: str) -> Watch:
        """Return the watch of one run."""
        return _Own(self, self._watch, name)

    def show(self, name: str, done: int, total: int, note: str) -> None:
        """Show how far one run is."""
        self._rows[name] = (done, total, note.partition("\n")[0])
        rows = [f"{name:<{self._width}} {done}/{total}  {said}" for name, (done, total, said) in self._rows.items()]
        if more := rows[MOST_ROWS:]:
            rows[MOST_ROWS:] = [f"... and {len(more)} more"]
        if self._waiting:
            rows.append(f"{len(self._waiting)} {'waits' if len(self._waiting) == 1 else 'wait'} for a slot")
        steps = [row[:2] for row in self._rows.values()]
        self._watch.progress(sum(one for one, _ in steps), sum(all_ for _, all_ in steps), "\n".join(rows))

    def leave(self, name: str) -> None:
        """Take a run off the board."""
        self._rows.pop(name, None)

    def wait(self, names: Sequence[str]) -> None:
        """Say from now on how many wait."""
        self._waiting = names

    def say(self, name: str, text: str) -> None:
        """Say a line of one run; what was said of it before is not said again."""
        mark = "warning: " if text.startswith("warning: ") else ""
        line = f"{mark}{name}: {text.removeprefix(mark)}"
        if line not in self._said:
            self._said.add(line)
            self._watch.say(line)


class _Own(Watch):
    """One run's watch: its phases have its name, and its steps go to the board."""

    def __init__(self, board: Board, watch: Watch, name: str) -> None:
        self._board, self._watch, self._name = board, watch, name
        self._is_open = False

    def begin(self, phase: str) -> None:
        self._is_open = True
        self._watch.begin(f"{self._name}: {phase}")

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self._is_open:
            self._watch.progress(done, total, note)
        else:
            self._board.show(self._name, done, total, note)

    def end(self) -> None:
        self._is_open = False
        self._watch.end()

    def say(self, text: str) -> None:
        self._board.say(self._name, text)
