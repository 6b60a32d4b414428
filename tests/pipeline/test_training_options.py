"""What a run may add to the loop: accumulation, a teacher, averages, other optimizers, a fused backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.adapters.textual_inversion import TextualInversion
from limner.errors import UserError
from limner.families.family import Family
from limner.objectives import Denoising
from limner.recipe import UNIONS
from limner.seeds import generator
from limner.train.average import Ema
from limner.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from limner.train.loop import Slot, Training
from limner.train.loss_scale import LossScale
from limner.train.optimizer import AdamW, Optimizer
from limner.types import Batch, Conditioning
from tests.pipeline.drawn import Drawn

MEMBERS: dict[str, type[Optimizer]] = UNIONS["optimizer"]  # type: ignore[assignment]
FEW = ("*.attn2.to_k", "*.attn2.to_v")


def training(family: Family, adapter: LoRA | Full | None = None, source: Any = None, **more: Any) -> Training:
    optimizer = more.pop("optimizer", AdamW())
    rate = 1.0 if optimizer.finds_learning_rate else more.pop("learning_rate", 1e-3)
    attached = (adapter or LoRA(rank=2, targets=FEW)).attach(family, [SlotSettings(seed=3)])
    slot = Slot("s", source or Drawn(0), seed=3, steps=6, learning_rate=rate)
    return Training(family, attached, [slot], objective=more.pop("objective", Denoising()), optimizer=optimizer, **more)


def finish(run: Training) -> dict[str, Tensor]:
    for _ in run:
        pass
    state = {name: t.clone() for name, t in run.state()[0].items()}
    run.adapter.detach()
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


OPTIONS = {**{kind: {"optimizer": member()} for kind, member in MEMBERS.items()}, "ema": {"ema": Ema(decay=0.9)}}


@pytest.mark.parametrize("name", OPTIONS)
def test_twice_interrupted_and_watched_equals_unbroken(name: str, family: Family, tmp_path: Path) -> None:
    """Bit for bit: through checkpoint files, and with a look at the averaged weights (a preview) after every step."""
    unbroken = finish(training(family, **OPTIONS[name]))
    for stop in (1, 3, 6):
        part = training(family, **OPTIONS[name])
        for checkpoint in complete_checkpoints(tmp_path)[-1:]:
            load_checkpoint(part, checkpoint)
        while part.index < stop:
            part.step()
            with part.evaluating():
                part.adapter.state_dict()
        save_checkpoint(part, tmp_path, keep=2)
        ended = {key: tensor.clone() for key, tensor in part.state()[0].items()}
        part.adapter.detach()
    assert same(ended, unbroken)


class Fixed(Denoising):
    """Denoising whose noise and timesteps follow from the latents, so that a row has the same loss in every batch."""

    def losses(self, predict: Any, x_0: Tensor, schedule: Any, *, draws: Sequence[Any], **_rest: Any) -> Tensor:
        noise, t = x_0.flip(-1), (x_0[:, 0, 0, 0].abs() * 300).long()
        target = schedule.target(x_0, noise, t)
        return (predict(schedule.add_noise(x_0, noise, t), t) - target).square().mean((1, 2, 3))


class Parted:
    """The rows of one batch, in parts of `size` instance rows with as many class rows, one after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        moments = torch.randn(4, 2, 4, 16, 16, generator=generator("parted"))
        moments[:, 1] = 0  # no draw from the moments
        self.moments, self.hidden = moments, torch.randn(4, 32, 32, generator=generator("hidden"))

    def batch(self, step: int, *, seed: int) -> Batch:
        first = step * self.size % 2
        rows = [*range(first, first + self.size), *range(2 + first, 2 + first + self.size)]
        weight = torch.tensor([1.0] * self.size + [0.5] * self.size)
        is_prior = (False,) * self.size + (True,) * self.size
        names = tuple(f"{row}.png" for row in rows)
        return Batch(names, self.moments[rows], Conditioning(self.hidden[rows]), weight, is_prior)


def test_two_batches_accumulated_equal_one_of_twice_the_size(family: Family) -> None:
    at_once = training(family, source=Parted(2), objective=Fixed())
    one = at_once.step().slots[0]
    expected = [p.grad.clone() for p in at_once.parameters[0].values() if p.grad is not None]
    at_once.adapter.detach()
    in_two = training(family, source=Parted(1), objective=Fixed(), accumulate=2)
    two = in_two.step().slots[0]
    for parameter, gradient in zip(in_two.parameters[0].values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    for name in ("loss", "instance_loss", "prior_loss", "grad_norm"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-5), name


def test_each_part_of_a_step_has_its_own_batch_and_draws(family: Family) -> None:
    asked: list[int] = []

    class Asked(Drawn):
        def batch(self, step: int, *, seed: int) -> Batch:
            asked.append(step)
            return super().batch(0, seed=seed)

    run = training(family, source=Asked(0, prior=False), accumulate=3)
    first, second = (run.step().slots[0].loss for _ in range(2))
    assert asked == [0, 1, 2, 3, 4, 5]
    assert first != second


def test_a_part_that_is_broken_skips_the_whole_step(family: Family) -> None:
    source = Drawn(0)
    source.poison = range(3, 4)  # the second part of the second step
    run = training(family, source=source, accumulate=2)
    assert [run.step().slots[0].skipped for _ in range(3)] == [False, True, False]


def test_the_base_teaches_the_class_pictures(family: Family) -> None:
    run = training(family, source=Drawn(0, rows=2), teacher=True, learning_rate=0.1)
    first = run.step().slots[0]
    assert first.prior_loss == pytest.approx(0, abs=1e-12), "the adapter adds nothing yet, so the base agrees"
    assert first.instance_loss > 0.01
    for _ in range(3):
        later = run.step().slots[0]
    assert later.prior_loss is not None
    assert later.prior_loss > 1e-6

    # the same loss by hand: the base's own prediction is the target of the class rows
    batch, draws = Drawn(0, rows=2).batch(4, seed=3), generator(3, "step", 4)
    mean, std = batch.moments.unbind(1)
    x_0 = family.scale_latents(mean + std * torch.randn(mean.shape, generator=draws))
    noise = torch.randn(x_0.shape, generator=draws)
    t = torch.randint(0, 1000, (4,), generator=draws)
    x_t = family.schedule.add_noise(x_0, noise, t)
    with torch.no_grad():
        tuned = family.predict(x_t, t, batch.conditioning)
        with run.adapter.disabled():
            base = family.predict(x_t, t, batch.conditioning)
    wanted = (tuned - base).square().mean((1, 2, 3)) * family.schedule.min_snr_weight(t, 5.0)
    assert run.step().slots[0].prior_loss == pytest.approx(float(wanted[2:].mean()), rel=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient_checkpointing"])
def test_a_fused_backward_trains_all_weights_to_the_same_bits(
    family: Family, tmp_path: Path, checkpointing: bool
) -> None:
    if checkpointing:  # inner values are computed again while the weights behind them are already updated
        family.unet.enable_gradient_checkpointing()
    ends = []
    for fused in (False, True):
        optimizer = AdamW(max_grad_norm=0, fused_backward=fused)
        run = training(family, Full(), optimizer=optimizer)
        steps = [run.step() for _ in range(2)]
        assert not fused or all(p.grad is None for p in run.parameters[0].values())
        save_checkpoint(run, tmp_path / str(fused), keep=1)
        run.adapter.detach()
        run = training(family, Full(), optimizer=optimizer)
        load_checkpoint(run, complete_checkpoints(tmp_path / str(fused))[-1])
        steps.append(run.step())
        ends.append(([s.slots for s in steps], {n: t.clone() for n, t in run.state()[0].items()}))
        run.adapter.detach()
    (plain, expected), (fused_steps, found) = ends
    assert fused_steps == plain
    assert same(found, expected)


def test_a_fused_backward_leaves_no_hooks_and_refuses_a_lora(family: Family) -> None:
    run = training(family, Full(), optimizer=AdamW(max_grad_norm=0, fused_backward=True))
    run.step()
    (run.parameters[0]["unet.conv_in.weight"] ** 2).sum().backward()
    assert run.parameters[0]["unet.conv_in.weight"].grad is not None
    run.adapter.detach()
    with pytest.raises(UserError, match="fused_backward=true is for adapters that train the base's own weights"):
        training(family, optimizer=AdamW(max_grad_norm=0, fused_backward=True))


def test_a_loss_scale_trains_to_the_same_bits_and_mends_overflows(family: Family) -> None:
    plain = training(family)
    expected = [s.slots for s in plain]
    plain.adapter.detach()
    scaled = training(family)
    scaled.updates[0].scale = LossScale(2.0**10, limit=2.0**24)
    assert [s.slots for s in scaled] == expected
    scaled.adapter.detach()

    over = training(family)
    over.updates[0].scale = LossScale(2.0**130, limit=2.0**130)  # in float32 this is infinite, and so is the gradient
    assert [over.step().slots[0].skipped for _ in range(4)] == [True, True, True, False]
    assert over.skipped_in_a_row == [0]
    assert over.state()[1]["updates"][0]["scale"] == [2.0**127, 1]


def test_a_word_learns_nothing_from_captions_without_it(family: Family) -> None:
    """As when every caption of a batch is dropped: no gradient, and no error either."""

    class Said(Drawn):
        def batch(self, step: int, *, seed: int) -> Batch:
            caption = "a <dog>" if step == 1 else ""
            return replace(super().batch(step, seed=seed), captions=(caption, ""))

    adapter = TextualInversion(vectors=2).attach(family, [SlotSettings(seed=0, words={"<dog>": "dog"})])
    slot = Slot("dog", Said(0), seed=0, steps=3, learning_rate=1e-3)
    steps = list(Training(family, adapter, [slot], objective=Denoising(), optimizer=AdamW()))
    adapter.detach()
    norms = [step.slots[0].grad_norm for step in steps]
    assert norms[0] == norms[2] == 0 < norms[1]
    assert not any(step.slots[0].skipped for step in steps)


def test_the_groups_that_train_are_named_and_must_change(family: Family) -> None:
    adapter = LoRA(rank=2, targets=FEW, text_encoder=True).attach(family, [SlotSettings(seed=0)])
    source = Drawn(0)
    words = [replace(source.batch(0, seed=0), captions=("a dog", "a cat"))]

    class Said(Drawn):
        def batch(self, step: int, *, seed: int) -> Batch:
            return words[0]

    slot = Slot("dog", Said(0), seed=0, steps=2, learning_rate=1e-3, rates={"text_encoder": 0.0})
    run = Training(family, adapter, [slot], objective=Denoising(), optimizer=AdamW())
    groups = run.groups()
    assert [(g.slot, g.name, g.learning_rate) for g in groups] == [("dog", "unet", 1e-3), ("dog", "text_encoder", 0.0)]
    assert sum(g.parameters for g in groups) == adapter.trainable_parameters()
    steps = list(run)
    assert steps[-1].slots[0].learning_rates == {"unet": 1e-3, "text_encoder": 0.0}
    assert steps[-1].slots[0].learning_rate == 1e-3
    with pytest.raises(UserError, match=r"^dog: text_encoder was to be trained but did not change in 2 steps"):
        run.check_changes()
