"""The training loop: slots equal separate runs, the same seed gives the same weights, bad numbers are kept out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.errors import Guarded
from limner.families.family import Family
from limner.objectives import Denoising
from limner.train.checkpoint import complete_checkpoints, save_checkpoint
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from tests.pipeline.drawn import Drawn

OPTIMIZER = AdamW(schedule="cosine", warmup_steps=2, max_grad_norm=0.05)


def slot(i: int, steps: int = 20) -> Slot:
    return Slot(f"s{i}", Drawn(i), seed=100 + i, steps=steps, learning_rate=2e-4 * (i + 1))


def training(family: Family, slots: list[Slot], ranks: list[int], targets: str = "all") -> Training:
    settings = [SlotSettings(seed=s.seed, rank=r) for s, r in zip(slots, ranks, strict=True)]
    adapter = LoRA(targets=targets).attach(family, settings)
    return Training(family, adapter, slots, objective=Denoising(noise_offset=0.05), optimizer=OPTIMIZER)


def weights(run: Training, i: int = 0) -> dict[str, Tensor]:
    return run.adapter.state_dict(i)


def finish(run: Training) -> dict[str, Tensor]:
    for _ in run:
        pass
    state = weights(run)
    run.adapter.detach()
    return state


RANKS = (4, 2, 3, 1, 2)


@pytest.fixture(scope="module")
def ends() -> dict[int, dict[str, Tensor]]:
    """Return where separate runs ended, by the number of the slot."""
    return {}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_slots_equal_separate_runs(family: Family, n: int, ends: dict[int, dict[str, Tensor]]) -> None:
    """Own examples, seeds, ranks, learning rates, clipping and lengths: each slot ends where its own run ends."""
    slots = [slot(i, steps=20 - 3 * i) for i in range(n)]
    stacked = training(family, slots, list(RANKS[:n]))
    for _ in stacked:
        pass
    together = [weights(stacked, i) for i in range(n)]
    stacked.adapter.detach()
    for i, one in enumerate(slots):
        if i not in ends:
            ends[i] = finish(training(family, [one], [RANKS[i]]))
        alone = ends[i]
        error = sum(float((tensor - together[i][name]).square().sum()) for name, tensor in alone.items()) ** 0.5
        size = sum(float(tensor.square().sum()) for tensor in alone.values()) ** 0.5
        assert error < 1e-5 * size, f"slot {i} of {len(slots)}: {error / size:g}"


def test_same_seed_same_weights_bit_for_bit(family: Family) -> None:
    first, second = (finish(training(family, [slot(0, 8)], [4])) for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    other = finish(training(family, [Slot("x", Drawn(0), seed=7, steps=8, learning_rate=2e-4)], [4]))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_incomplete_checkpoint_is_not_taken(family: Family, tmp_path: Path) -> None:
    run = training(family, [slot(0, 5)], [2], targets="attention")
    for _ in range(2):
        run.step()
        save_checkpoint(run, tmp_path, keep=5)
    torn = tmp_path / "step-000002" / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["step-000001"]


def test_loss_that_is_not_finite_skips_the_step_then_stops(family: Family, tmp_path: Path) -> None:
    source = Drawn(0)
    source.poison = range(2, 4)
    run = training(family, [Slot("s", source, seed=1, steps=20, learning_rate=1e-3)], [2])
    run.step(), run.step()
    before = weights(run)
    assert [run.step().slots[0].skipped for _ in range(2)] == [True, True]
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in before.items())
    assert not run.step().slots[0].skipped
    source.poison = range(5, 99)
    with pytest.raises(Guarded, match=r"Stopped at step 10: .* 5 times in a row \(pictures: 0-0.png, 0-1.png;"):
        for _ in run:
            pass
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(run).values())


def test_a_bad_slot_leaves_its_neighbour_alone(family: Family) -> None:
    poisoned = Drawn(1)
    poisoned.poison = range(1, 3)
    slots = [slot(0, 6), Slot("bad", poisoned, seed=5, steps=6, learning_rate=1e-3)]
    stacked = training(family, slots, [2, 2])
    steps = list(stacked)
    assert [s.slots[1].skipped for s in steps] == [False, True, True, False, False, False]
    together = weights(stacked)
    stacked.adapter.detach()
    for name, tensor in finish(training(family, [slots[0]], [2])).items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6)


def test_checkpoint_that_is_not_finite_is_never_written(family: Family, tmp_path: Path) -> None:
    run = training(family, [slot(0)], [2], targets="attention")
    next(iter(run.parameters[0].values())).fill_(float("inf"))
    with pytest.raises(Guarded, match="is not finite, and such a checkpoint is never written"):
        save_checkpoint(run, tmp_path, keep=1)
    assert complete_checkpoints(tmp_path) == []
