"""The update of one slot, without a model: its gradients are drawn, so every optimizer is tried in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.recipe import UNIONS
from limner.seeds import generator
from limner.train.average import Ema
from limner.train.loss_scale import GOOD_STEPS, LossScale
from limner.train.optimizer import AdamW, Optimizer, Prodigy, ScheduleFree
from limner.train.slots import Slot
from limner.train.update import Update
from limner.types import Batch

MEMBERS: dict[str, type[Optimizer]] = UNIONS["optimizer"]  # type: ignore[assignment]
SHAPES = {"unet.a": (48, 100), "unet.b": (3, 5, 2), "unet.c": (), "text_encoder.d": (70, 60), "text_encoder.e": (7,)}


class Nothing:
    """A source that nobody asks."""

    def batch(self, step: int, *, seed: int) -> Batch:
        raise AssertionError("a test of updates draws no batches")


def parameters(learning: bool = False) -> dict[str, Tensor]:
    draws = generator("parameters")
    made = {name: 0.3 * torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}
    return {name: torch.nn.Parameter(t) for name, t in made.items()} if learning else made


def update(spec: Optimizer, ema: float = 0.0, scale: LossScale | None = None, learning: bool = False) -> Update:
    rate = 1.0 if spec.finds_learning_rate else 1e-2
    slot = Slot("s", Nothing(), seed=0, steps=12, learning_rate=rate, rates={"text_encoder": rate / 2})
    return Update(parameters(learning), slot, optimizer=spec, ema=Ema(decay=ema), scale=scale or LossScale())


def gradients(step: int, now: dict[str, Tensor]) -> dict[str, Tensor]:
    draws = generator("gradient", step)
    return {name: t.detach() + 0.1 * torch.randn(t.shape, generator=draws) for name, t in now.items()}


def run(one: Update, first: int, last: int) -> None:
    for step in range(first, last + 1):
        one.begin(step)
        for name, gradient in gradients(step, one.parameters).items():
            one.parameters[name].grad = gradient
        one.clip()
        one.apply(step)


def spec_of(kind: str, **more: Any) -> Optimizer:
    schedule = "constant" if kind == "schedule_free" else "cosine"
    return MEMBERS[kind](kind=kind, schedule=schedule, warmup_steps=2, weight_decay=0.1, **more)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) and t.dtype == b[name].dtype for name, t in a.items())


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("kind", MEMBERS)
def test_twice_interrupted_equals_unbroken_bit_for_bit(kind: str, ema: float, tmp_path: Path) -> None:
    """The state goes through files: tensors as safetensors, numbers as JSON."""
    ema = 0.0 if kind == "schedule_free" else ema
    spec = spec_of(kind)
    unbroken = update(spec, ema)
    run(unbroken, 1, 12)
    expected, numbers = unbroken.state()
    for first, last in ((1, 3), (4, 8), (9, 12)):
        part = update(spec, ema)
        if first > 1:
            part.restore(load_file(tmp_path / "state"), json.loads((tmp_path / "numbers").read_text()))
        run(part, first, last)
        tensors, counted = part.state()
        save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "state")
        (tmp_path / "numbers").write_text(json.dumps(counted))
    assert same(tensors, expected)
    assert counted == numbers
    assert part.learning_rates == unbroken.learning_rates
    assert not same(expected, update(spec, ema).state()[0])


def test_each_group_has_its_own_learning_rate() -> None:
    one = update(AdamW(schedule="linear", warmup_steps=2))
    one.begin(1)
    assert one.learning_rates == pytest.approx({"unet": 1e-2 / 3, "text_encoder": 5e-3 / 3})
    before = {name: p.clone() for name, p in one.parameters.items()}
    for p in one.parameters.values():
        p.grad = torch.ones_like(p)
    one.apply(1)  # Adam's first step is the learning rate, whatever the gradient is
    for name, p in one.parameters.items():
        rate = one.learning_rates[name.partition(".")[0]]
        torch.testing.assert_close(p, before[name] * (1 - 0.01 * rate) - rate, atol=1e-6, rtol=1e-5)


def test_prodigy_says_what_it_found() -> None:
    one = update(Prodigy())
    run(one, 1, 30)
    found = [part.settings["d"] for part in one.parts]
    assert min(found) > 2 * Prodigy().d0
    assert one.learning_rates == {"unet": found[0], "text_encoder": found[1] / 2}


@pytest.mark.parametrize(
    ("spec", "ema"), [(ScheduleFree(), 0.0), (AdamW(), 0.9), (AdamW(), 0.0)], ids=["schedule_free", "ema", "none"]
)
def test_evaluating_shows_the_average_and_leaves_no_trace(spec: Optimizer, ema: float) -> None:
    """Looking after every step changes nothing: the run ends at the same weights as one that nobody looked at."""
    quiet, watched = update(spec, ema), update(spec, ema)
    run(quiet, 1, 12)
    for step in range(1, 13):
        with watched.evaluating():
            pass
        run(watched, step, step)
        before = {name: p.clone() for name, p in watched.parameters.items()}
        with watched.evaluating():
            differs = not same(before, watched.parameters)
        assert differs == (spec.averages or ema > 0 if step > 1 else differs)
        assert same(before, watched.parameters)
    assert same(quiet.state()[0], watched.state()[0])
    assert quiet.state()[1] == watched.state()[1]


def test_schedule_free_shows_its_running_mean() -> None:
    """Without warm-up the average is the plain mean of the points z, which the library keeps."""
    one = update(ScheduleFree(beta1=0.5))
    points = []
    for step in range(1, 6):
        run(one, step, step)
        points.append(one.parts[0].optimizer.state[one.parameters["unet.a"]]["z"].clone())
    with one.evaluating():
        torch.testing.assert_close(one.parameters["unet.a"], torch.stack(points).mean(0), atol=1e-5, rtol=1e-4)


def test_average_follows_its_formula() -> None:
    one, decay = update(AdamW(), 0.5), 0.5
    average = one.parameters["unet.b"].clone()
    for step in range(1, 9):
        run(one, step, step)
        now = min(decay, (1 + step) / (10 + step))
        average = now * average + (1 - now) * one.parameters["unet.b"]
        with one.evaluating():
            torch.testing.assert_close(one.parameters["unet.b"], average)


def fused_run(one: Update, first: int, last: int, scale: float = 1.0) -> list[float]:
    """Run with a loss whose gradient is the one of `gradients`, through autograd."""
    norms = []
    for step in range(first, last + 1):
        one.begin(step)
        wanted = gradients(step, one.parameters)
        with one.backward():
            sum((scale * p * wanted[name]).sum() for name, p in one.parameters.items()).backward()  # type: ignore[union-attr]
        freed = [p.grad is None for p in one.parameters.values()]
        assert all(freed) if one.spec.fused_backward else not any(freed)
        norms.append(float(one.clip()))
        one.apply(step)
        for p in one.parameters.values():
            p.grad = None
    return norms


@pytest.mark.parametrize("kind", [kind for kind in MEMBERS if kind != "prodigy"])
def test_fused_backward_equals_the_plain_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    ema = 0.0 if kind == "schedule_free" else 0.9
    plain, fused = (update(spec_of(kind, max_grad_norm=0, fused_backward=f), ema, learning=True) for f in (False, True))
    norms = fused_run(plain, 1, 12)
    assert fused_run(fused, 1, 5) == norms[:5]
    resumed = update(spec_of(kind, max_grad_norm=0, fused_backward=True), ema, learning=True)
    tensors, numbers = fused.state()
    resumed.restore({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(numbers)))
    assert fused_run(resumed, 6, 12) == norms[5:]
    assert same(resumed.state()[0], plain.state()[0])


def test_fused_backward_skips_only_the_weight_whose_gradient_is_broken() -> None:
    one = update(AdamW(fused_backward=True, max_grad_norm=0), learning=True)
    before = {name: p.detach().clone() for name, p in one.parameters.items()}
    one.begin(1)
    with one.backward():
        sum((p * (float("nan") if name == "unet.b" else 1.0)).sum() for name, p in one.parameters.items()).backward()  # type: ignore[union-attr]
    assert [name for name, p in one.parameters.items() if torch.equal(p, before[name])] == ["unet.b"]
    assert float(one.clip()) != float(one.clip()), "the norm says that something was broken, and is then forgotten"


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scale_changes_nothing_but_the_range(fused: bool) -> None:
    spec = AdamW(max_grad_norm=0, fused_backward=fused)
    plain, scaled = update(spec, learning=True), update(spec, scale=LossScale(2.0**10, 2.0**24), learning=True)
    assert fused_run(plain, 1, 6) == fused_run(scaled, 1, 6, scale=2.0**10)
    assert all(torch.equal(p, plain.parameters[name]) for name, p in scaled.parameters.items())


def test_loss_scale_halves_and_doubles() -> None:
    scale = LossScale.of(torch.float16)
    assert (scale.factor, scale.overflowed(), scale.factor) == (2.0**16, True, 2.0**15)
    for _ in range(GOOD_STEPS - 1):
        scale.passed()
    assert scale.factor == 2.0**15
    scale.passed()
    assert (scale.factor, scale.good_steps) == (2.0**16, 0)
    scale.passed(), scale.overflowed()
    assert scale.good_steps == 0, "good steps are counted in a row"
    while scale.overflowed():
        pass
    assert scale.factor == 1
    off = LossScale.of(torch.bfloat16)
    for _ in range(2 * GOOD_STEPS):
        off.passed()
    assert off.factor == 1
    assert not off.overflowed()
