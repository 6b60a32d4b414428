"""Signals: noted from the first moment, in any thread, and everything put back."""

import signal
from threading import Thread
from typing import Any

import pytest

from limner.interrupt import noted_signals


def test_a_signal_that_comes_as_soon_as_it_is_handled_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    install = signal.signal

    def install_and_raise(number: int, handler: Any) -> Any:
        replaced = install(number, handler)
        if replaced is before:
            signal.raise_signal(number)
        return replaced

    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", install_and_raise)
        with noted_signals() as received:
            patched.undo()
            assert received == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_handles_no_signal_and_fails_at_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with noted_signals() as received:
            seen.extend([signal.getsignal(signal.SIGINT), list(received)])

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT), []]
