from __future__ import annotations

import math

import pytest
import torch

from limner.metrics.similarity import (
    cosines,
    distance_within_groups,
    drift,
    foreground_cosine,
    is_nearest,
    leave_one_out,
    leave_one_out_rate,
    mean_cosine,
    nearest_cosine,
    paired_cosine,
)

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]
NORTH_EAST = [1.0, 1.0]


def rows(*vectors: list[float]) -> torch.Tensor:
    return torch.tensor(vectors)


def test_cosines_of_known_directions() -> None:
    found = cosines(rows(EAST, NORTH), rows(EAST, NORTH, WEST, NORTH_EAST))
    half = math.sqrt(0.5)
    assert torch.allclose(found, torch.tensor([[1.0, 0.0, -1.0, half], [0.0, 1.0, 0.0, half]], dtype=torch.float64))


def test_the_mean_over_rows_is_the_mean_over_all_pairs() -> None:
    a, b = torch.randn(7, 5), torch.randn(4, 5)
    pairs = [torch.cosine_similarity(x.double(), y.double(), dim=0) for x in a for y in b]
    assert mean_cosine(a, b).mean() == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-12)


def test_identical_sets_have_the_perfect_score() -> None:
    a = torch.randn(6, 5)
    same = a[:1].repeat(4, 1)
    assert torch.allclose(mean_cosine(same, same), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(nearest_cosine(a, a), torch.ones(6, dtype=torch.float64))
    assert torch.equal(drift(a, a), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(paired_cosine(a, a), torch.ones(6, dtype=torch.float64))


def test_the_order_of_either_side_does_not_matter() -> None:
    a, b = torch.randn(6, 5), torch.randn(4, 5)
    order = torch.randperm(6)
    assert torch.allclose(mean_cosine(a, b)[order], mean_cosine(a[order], b), atol=1e-15)
    assert torch.allclose(mean_cosine(a, b), mean_cosine(a, b.flip(0)), atol=1e-15)
    assert torch.allclose(nearest_cosine(a, b), nearest_cosine(a, b.flip(0)), atol=1e-15)


def test_length_does_not_matter() -> None:
    a, b = torch.randn(6, 5), torch.randn(4, 5)
    assert torch.allclose(mean_cosine(a, b), mean_cosine(a * 7, b * 0.1), atol=1e-7)


def test_the_nearest_is_the_nearest() -> None:
    assert nearest_cosine(rows(EAST), rows(NORTH, WEST, NORTH_EAST)).item() == pytest.approx(math.sqrt(0.5))


def test_leaving_one_out_leaves_out_itself() -> None:
    assert torch.allclose(leave_one_out(rows(EAST, NORTH, WEST)), torch.tensor([[0.0, -1.0], [0, 0], [-1, 0]]).double())


def test_drift_goes_from_nothing_to_the_opposite() -> None:
    found = drift(rows(EAST, EAST, EAST), rows(EAST, NORTH, WEST))
    assert torch.allclose(found, torch.tensor([0.0, 0.5, 1.0]).double())


def test_distance_is_taken_inside_a_group_only() -> None:
    found = distance_within_groups(rows(EAST, NORTH, EAST, EAST, WEST), torch.tensor([0, 0, 1, 1, 2]))
    assert torch.allclose(found[:4], torch.tensor([1.0, 1.0, 0.0, 0.0]).double())
    assert found[4].isnan()


def test_random_directions_have_the_known_spread() -> None:
    # Between independent uniform directions in n dimensions the cosine has mean 0 and variance 1 / n.
    found = cosines(torch.randn(300, 64), torch.randn(300, 64))
    assert float(found.mean()) == pytest.approx(0, abs=0.005)
    assert float(found.var()) == pytest.approx(1 / 64, rel=0.05)


def test_only_the_foreground_counts_and_wherever_it_is() -> None:
    subject, scenery, elsewhere = torch.randn(3, 16), torch.randn(9, 16), torch.randn(9, 16)
    moved = torch.cat([elsewhere[:5], subject.flip(0) * 2, elsewhere[5:]])
    copied_background = torch.cat([scenery, torch.randn(3, 16)])
    found = foreground_cosine(torch.stack([torch.cat([subject, scenery]), moved, copied_background]), [subject])
    assert found.shape == (3, 1)
    assert torch.allclose(found[:2, 0], torch.ones(2).double(), atol=1e-6)
    assert found[2, 0] < 0.8


def test_a_foreground_is_found_patch_by_patch() -> None:
    patches = torch.stack([rows(EAST, NORTH), rows(WEST, NORTH_EAST)])
    found = foreground_cosine(patches, [rows(EAST), rows(EAST, WEST)])
    half = math.sqrt(0.5)
    assert torch.allclose(found, torch.tensor([[1.0, 0.5], [half, (half + 1) / 2]]).double(), atol=1e-6)


def test_the_nearest_set_is_that_of_the_highest_mean() -> None:
    own, others = rows(EAST, NORTH), [rows(WEST), rows(NORTH)]
    assert is_nearest(rows(EAST, WEST, NORTH, NORTH_EAST), own, others).tolist() == [1, 0, 0, 0]  # the last is a tie


def test_real_pictures_are_recognised_by_the_others_of_their_set() -> None:
    assert leave_one_out_rate(rows(EAST, EAST, NORTH), [rows(NORTH)]) == pytest.approx(2 / 3)
