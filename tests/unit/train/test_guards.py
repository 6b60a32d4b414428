"""What warns: on logs of real runs without a false alarm, on a simulated feed of times and memory, each once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from limner.adapters.adapter import Change
from limner.errors import Guarded
from limner.train.guards import DeadAdapter, LossSpike, require_finite
from limner.train.slots import SlotStep

RECORDED: dict[str, list[float]] = json.loads(Path(__file__).with_name("losses.json").read_text())
SPOILT = next(name for name in RECORDED if "spoils" in name)
GIB = 2**30


def step(loss: float = 0.1, **more: object) -> SlotStep:
    given = {"slot": "s", "loss": loss, "instance_loss": loss, "prior_loss": None, "learning_rates": {"unet": 5e-3},
             "grad_norm": 1.0, "skipped": False, "pictures": ("a.jpg", "b.png"), "timesteps": (981, 12),
             "weight_norm": 3.0}  # fmt: skip
    return SlotStep(**{**given, **more})  # type: ignore[arg-type]


def warned(seen: Iterable[str | None]) -> list[int]:
    """Return the numbers of the steps, from 1, at which something was said."""
    return [number for number, line in enumerate(seen, start=1) if line]


@pytest.mark.parametrize("name", [name for name in RECORDED if name != SPOILT])
def test_a_real_run_gives_no_alarm(name: str) -> None:
    spike = LossSpike()
    assert warned(spike.see(step(loss)) for loss in RECORDED[name]) == []


def test_a_real_run_that_is_spoilt_warns_once_and_soon() -> None:
    """The learning rate rose until, at about step 38, the weights were spoilt."""
    spike = LossSpike()
    (at,) = warned(spike.see(step(loss)) for loss in RECORDED[SPOILT])
    assert 40 <= at <= 55


def test_single_spikes_and_losses_that_are_not_finite_are_no_alarm() -> None:
    spike = LossSpike()
    losses = [100.0 if i % 7 == 0 else math.nan if i % 11 == 0 else 0.1 + 0.01 * (i % 5) for i in range(300)]
    assert warned(spike.see(step(loss)) for loss in losses) == []


def dead(norms: dict[str, float], **more: object) -> list[str]:
    guard = DeadAdapter(lambda: {group: Change(1, 1, norm) for group, norm in norms.items()})
    return [line for _ in range(60) if (line := guard.see(step(**more)))]  # type: ignore[arg-type]


def test_a_group_that_does_not_move_is_named_once() -> None:
    assert dead({"unet": 1.0}) == []
    (line,) = dead({"unet": 0.0, "text_encoder": 1.0})
    assert line.startswith("unet does not learn: after 20 steps it is what it was (learning rate 0.005).")
    (line,) = dead({"unet": 0.0, "text_encoder": 0.0}, grad_norm=0.0)
    assert "unet and text_encoder does not learn" in line
    assert "(no gradient)" in line


def test_skipped_steps_do_not_make_an_adapter_dead() -> None:
    assert dead({"unet": 0.0}, skipped=True) == []


@pytest.mark.parametrize(
    ("given", "skipped", "message"),
    [
        ({"weight_norm": math.inf}, 0, r"Stopped at step 812: the weights that learn are no longer finite \(pictures:"),
        ({"weight_norm": math.nan}, 0, "no longer finite"),
        ({"loss": math.nan}, 5, r"loss or gradient was not finite 5 times in a row \(pictures: a.jpg, b.png; "
                                r"timesteps 981, 12; learning rate 0.005; float16\). Begin again with "
                                r"learning_rate=1e-4 or less, or precision=float32"),
        ({"learning_rates": {"unet": 1e-5}}, 5, "Begin again with learning_rate=1e-06"),
        ({"pictures": tuple("abcdefg")}, 6, r"pictures: a, b, c, d and 3 more;"),
    ],
)  # fmt: skip
def test_numbers_that_break_stop_the_run(given: dict[str, object], skipped: int, message: str) -> None:
    with pytest.raises(Guarded, match=message):
        require_finite(step(**given), 812, skipped_in_a_row=skipped, dtype=torch.float16)  # type: ignore[arg-type]


def test_what_is_finite_goes_on() -> None:
    require_finite(step(), 1, skipped_in_a_row=0, dtype=torch.float16)
    require_finite(step(loss=math.nan, skipped=True), 1, skipped_in_a_row=4, dtype=torch.float16)
