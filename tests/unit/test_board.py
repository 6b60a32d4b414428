"""The board of several runs: one bar for all, a row for each, lines with names."""

from __future__ import annotations

from limner.board import MOST_ROWS, Board
from limner.watch import Watch


class Seen(Watch):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[tuple[int, int, str]] = []
        self.phases: list[str] = []

    def begin(self, phase: str) -> None:
        self.phases.append(phase)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.shown.append((done, total, note))

    def say(self, text: str) -> None:
        self.said.append(text)


def test_steps_of_all_under_one_bar_with_a_row_for_each() -> None:
    seen = Seen()
    board = Board(seen, ["ann", "robert", "cid"])
    ann, robert = board.watch_of("ann"), board.watch_of("robert")
    board.wait(["cid"])
    ann.progress(3, 10, "loss 0.1\npreview: somewhere")
    robert.progress(1, 20, "loss 0.2")
    assert seen.shown[-1] == (4, 30, "ann    3/10  loss 0.1\nrobert 1/20  loss 0.2\n1 waits for a slot")
    board.leave("ann")
    board.wait([])
    robert.progress(2, 20, "loss 0.3")
    assert seen.shown[-1] == (2, 20, "robert 2/20  loss 0.3")


def test_a_phase_of_one_run_has_its_name_and_its_own_progress() -> None:
    seen = Seen()
    ann = Board(seen, ["ann"]).watch_of("ann")
    with ann.phase("prepare"):
        ann.progress(1, 5)
    ann.progress(2, 10)
    assert seen.phases == ["ann: prepare"]
    assert seen.shown == [(1, 5, ""), (2, 10, "ann 2/10  ")]


def test_lines_have_the_name_once_and_warnings_stay_warnings() -> None:
    seen = Seen()
    board = Board(seen, ["ann", "bob"])
    for name in ("ann", "ann", "bob"):
        board.watch_of(name).say("warning: something")
    assert seen.said == ["warning: ann: something", "warning: bob: something"]


def test_more_rows_than_fit_are_counted() -> None:
    seen = Seen()
    names = [f"s{i}" for i in range(MOST_ROWS + 3)]
    board = Board(seen, names)
    for name in names:
        board.watch_of(name).progress(1, 2, "x")
    lines = seen.shown[-1][2].splitlines()
    assert len(lines) == MOST_ROWS + 1
    assert lines[-1] == "... and 3 more"
