"""The course of the learning rate, and what does not go together."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from limner.errors import UserError
from limner.recipe import UNIONS
from limner.train.optimizer import AdamW, AdamW8bit, Lion, Optimizer, Prodigy, ScheduleFree

MEMBERS: dict[str, type[Optimizer]] = UNIONS["optimizer"]  # type: ignore[assignment]


def course(spec: Optimizer, steps: int) -> list[float]:
    return [round(spec.factor(step, steps), 4) for step in range(1, steps + 1)]


def test_courses_of_the_learning_rate() -> None:
    assert course(AdamW(), 3) == [1, 1, 1]
    assert course(AdamW(schedule="linear"), 4) == [1, 0.75, 0.5, 0.25]
    assert course(AdamW(schedule="cosine"), 4) == [1, 0.8536, 0.5, 0.1464]
    assert course(AdamW(schedule="cosine_restarts", cycles=2), 8) == [1, 0.8536, 0.5, 0.1464] * 2
    assert course(AdamW(schedule="polynomial", power=2), 4) == [1, 0.5625, 0.25, 0.0625]


def test_warm_up_in_steps_and_as_a_fraction_of_the_run() -> None:
    in_steps = course(AdamW(warmup_steps=3, schedule="linear"), 7)
    assert in_steps == [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert course(AdamW(warmup_fraction=3 / 7, schedule="linear"), 7) == in_steps
    with pytest.raises(UserError, match="optimizer.warmup_steps=7 is not shorter than the run"):
        AdamW(warmup_steps=7).factor(1, 7)


@pytest.mark.parametrize(
    ("spec", "rate", "accumulate", "message"),
    [
        (AdamW(warmup_steps=2, warmup_fraction=0.1), 1e-4, 1, "say the same thing twice. Give one"),
        (AdamW(fused_backward=True), 1e-4, 1, "optimizer.max_grad_norm=1 needs .* Set optimizer.max_grad_norm=0"),
        (AdamW(fused_backward=True, max_grad_norm=0), 1e-4, 2, "accumulate=2 needs .* Set accumulate=1"),
        (Prodigy(), 1e-4, 1, "learning_rate=0.0001 is only a factor .* Set learning_rate=1"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: Optimizer, rate: float, accumulate: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec.check(learning_rate=rate, accumulate=accumulate)


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [(Prodigy(), "prodigyopt", "optimizers"), (AdamW8bit(), "bitsandbytes", "lowmem")],
    ids=["prodigy", "adamw8bit"],
)
def test_a_missing_package_is_one_line(
    spec: Optimizer, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        spec.check(learning_rate=1.0, accumulate=1)
    install = f"pip install 'limner[{extra}]'"
    assert str(caught.value) == f"optimizer.kind={spec.kind!r} needs {package}, which is not installed: {install}"
    AdamW().check(learning_rate=1.0, accumulate=1)


@pytest.mark.parametrize("kind", MEMBERS)
def test_every_member_goes_downhill(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A quadratic bowl of 5,000 numbers: enough for 8-bit states."""
    spec = MEMBERS[kind]()
    spec.check(learning_rate=1.0, accumulate=1)
    weight = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    before, weight.grad = float(weight.norm()), torch.zeros_like(weight)
    optimizer = spec.build([weight], 1.0 if spec.finds_learning_rate else 0.02)
    for _ in range(30):
        weight.grad = weight.clone()
        with torch.no_grad():
            optimizer.step()
    assert float(weight.norm()) < (0.95 if not spec.finds_learning_rate else 0.9999) * before
    assert capsys.readouterr().out == ""


def test_eight_bits_are_eight_bits() -> None:
    weight = torch.ones(50, 100)
    weight.grad = torch.ones_like(weight)
    optimizer = AdamW8bit().build([weight], 1e-3)
    optimizer.step()
    assert {optimizer.state[weight][key].dtype for key in ("state1", "state2")} == {torch.uint8}
    with pytest.raises(UserError, match="cannot train stacked slots of different ranks"):
        AdamW8bit().build([torch.ones(4, 4)[:, :2]], 1e-3)


def test_settings_that_a_member_does_not_have() -> None:
    with pytest.raises(ValueError, match="Input should be 'constant'"):
        ScheduleFree(schedule="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Input should be False"):
        Prodigy(fused_backward=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Extra inputs"):
        Lion(epsilon=1e-8)  # type: ignore[call-arg]
