"""A change taken apart: against torch's singular values, and cut to what was asked for."""

from __future__ import annotations

import pytest
import torch

from limner.errors import UserError
from limner.low_rank import Cut, Kept, cut, of_change, of_product, percent, tell_kept


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 5, 3, 3), (6, 6)])
def test_singular_values_and_product_are_those_of_torch(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape)
    found = of_change(delta)
    wanted = torch.linalg.svdvals(delta.flatten(1).double())
    torch.testing.assert_close(found.S, wanted, rtol=1e-9, atol=1e-9)
    A, B = found.factors(len(wanted))
    torch.testing.assert_close(B @ A, delta.flatten(1), rtol=1e-5, atol=1e-5)
    assert found.energy(len(wanted)) == pytest.approx(found.total)


def test_a_product_is_taken_apart_without_being_made() -> None:
    A, B = torch.randn(4, 20), torch.randn(15, 4)
    whole, product = of_change(B @ A), of_product(A, B)
    torch.testing.assert_close(product.S, whole.S[:4], rtol=1e-5, atol=1e-5)
    assert whole.rank(Cut(rank=64)) == 4  # rounding is no direction of the change
    new_A, new_B, kept = cut(product, Cut(rank=2))
    best = torch.linalg.svd((B @ A).double())
    wanted = best.U[:, :2] * best.S[:2] @ best.Vh[:2]
    torch.testing.assert_close(new_B @ new_A, wanted.float(), rtol=1e-4, atol=1e-4)
    assert kept.share == pytest.approx(float(best.S[:2].square().sum() / best.S.square().sum()), rel=1e-5)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_energy_decides_the_smallest_rank_that_holds_it(energy: float) -> None:
    change = of_change(torch.randn(9, 14))
    rank = change.rank(Cut(energy=energy))
    assert change.energy(rank) >= (energy - 1e-9) * change.total
    assert rank == 1 or change.energy(rank - 1) < energy * change.total
    assert change.rank(Cut(energy=energy, rank=2)) == min(2, rank)


def test_a_change_of_nothing_has_rank_1_and_keeps_it_all() -> None:
    A, B, kept = cut(of_change(torch.zeros(4, 5)), Cut(rank=3))
    assert A.isfinite().all()
    assert not (B @ A).any()
    assert (kept.rank, kept.share) == (1, 1.0)


def test_what_is_kept_is_told_as_people_say_it() -> None:
    layers = [Kept(16, 60.0, 90.0, 100.0), Kept(9, 82.0, 96.0, 100.0)]
    assert tell_kept(layers, Cut(rank=16)) == "rank 16 keeps 71 % of the change (rank 64: 93 %)"
    assert tell_kept(layers, Cut(energy=0.6)) == "ranks 9 to 16 keep 71 % of the change (four times as much: 93 %)"
    assert [percent(share) for share in (1.0, 0.9999, 0.994, 0.5, 0.001, 0.0)] == [
        "all", "99.9 %", "99.4 %", "50 %", "under 1 %", "0 %",
    ]  # fmt: skip


def test_a_cut_has_to_say_something() -> None:
    with pytest.raises(UserError, match=r"resize: give rank=N or energy=0.95"):
        Cut.of({}, "resize")
    with pytest.raises(UserError, match=r"resize: rnk is not a setting\. Did you mean rank\?"):
        Cut.of({"rnk": 4}, "resize")
    with pytest.raises(UserError, match=r"resize: energy = 2 is not allowed \(input should be less than"):
        Cut.of({"energy": 2}, "resize")
