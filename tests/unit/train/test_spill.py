import torch

from limner.train.spill import Spilling, spilled_bytes

GIB = 2**30


def said(seconds: list[float], spilled_gib: float, *, at_once: bool = False) -> list[tuple[int, str]]:
    watching = Spilling(at_once=at_once)
    told = [(i, watching.note(s, int(spilled_gib * GIB))) for i, s in enumerate(seconds)]
    return [(i, line) for i, line in told if line]


def test_it_is_said_once_at_the_third_slow_step():
    seconds = [30.0, 1.2, 0.9, 1.1, 1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 40.0, 40.0, 40.0, 40.0, 41.0]
    ((step, line),) = said(seconds, 1.5)
    assert step == 12
    assert line.startswith("steps became 40x slower and 1.5 GiB do not fit into memory")
    assert "fit=true" in line


def test_a_slow_step_now_and_then_is_nothing():
    assert said([1.0] * 10 + [30.0, 20.0, 1.0] * 6, 1.5) == []


def test_memory_beyond_a_card_is_said_at_once():
    ((step, line),) = said([1.0] * 4, 1.5, at_once=True)
    assert (step, line[:7]) == (0, "1.5 GiB")
    assert said([1.0] * 20, 0.0, at_once=True) == []


def test_slow_without_a_spill_is_not_blamed_on_memory():
    ((_, line),) = said([1.0] * 10 + [9.0] * 4, 0.0)
    assert "nothing is swapped" in line


def test_a_process_that_is_in_memory_has_spilled_nothing():
    assert spilled_bytes(torch.device("cpu")) < GIB
