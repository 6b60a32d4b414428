"""The metrics' mathematics against torchmetrics."""

from __future__ import annotations

import torch
from torchmetrics.functional import pairwise_cosine_similarity

from limner.metrics.similarity import cosines, distance_within_groups, leave_one_out


def test_cosines_equal_torchmetrics() -> None:
    a, b = torch.randn(9, 16), torch.randn(7, 16)
    assert torch.allclose(cosines(a, b).float(), pairwise_cosine_similarity(a, b), atol=1e-6)


def test_leaving_one_out_equals_torchmetrics_without_its_diagonal() -> None:
    a = torch.randn(9, 16)
    # torchmetrics puts a zero on the diagonal, so the sum of a row is the sum over the others.
    expected = pairwise_cosine_similarity(a, zero_diagonal=True).sum(1) / 8
    assert torch.allclose(leave_one_out(a).mean(1).float(), expected, atol=1e-6)


def test_distance_within_one_group_equals_torchmetrics() -> None:
    a = torch.randn(6, 16)
    expected = 1 - pairwise_cosine_similarity(a, zero_diagonal=True).sum(1) / 5
    assert torch.allclose(distance_within_groups(a, torch.zeros(6, dtype=torch.long)).float(), expected, atol=1e-6)
