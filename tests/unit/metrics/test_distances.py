"""Distances between sets: known values of known distributions, and what their shares are good for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limner.evaluate.statistics import interval
from limner.metrics.distances import cubic, frechet_distance, gaussian, kernel_distance, ratio_of_means

Distance = Callable[[Tensor, Tensor], Tensor]


def by(kernel: Callable[[Tensor, Tensor], Tensor]) -> Distance:
    return lambda x, y: kernel_distance(kernel(x, x), kernel(y, y), kernel(x, y))


DISTANCES = {"cubic": by(cubic), "gaussian": by(gaussian), "frechet": frechet_distance}
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


@every_distance
def test_equal_sets_are_at_distance_zero_to_the_last_bit(distance: Distance) -> None:
    x = torch.randn(30, 5)
    assert not distance(x, x.clone()).any()


@every_distance
def test_the_order_of_the_pairs_does_not_matter(distance: Distance) -> None:
    x, y, order = torch.randn(30, 5), torch.randn(30, 5) + 1, torch.randperm(30)
    assert torch.allclose(distance(x, y)[order], distance(x[order], y[order]), atol=1e-9)


def test_the_gaussian_kernel_of_two_normal_sets_has_its_closed_form() -> None:
    # E k(x, y) = (s^2 / (s^2 + 2))^(d / 2) exp(-|m|^2 / (2 (s^2 + 2))) for unit normals whose means are m apart.
    dim, sigma, m = 3, 2.0, 1.5
    x, y = torch.randn(2000, dim), torch.randn(2000, dim)
    y[:, 0] += m
    width = sigma**2 + 2
    closed = 2 * (sigma**2 / width) ** (dim / 2) * (1 - math.exp(-(m**2) / (2 * width)))
    found = by(lambda a, b: gaussian(a, b, sigma=sigma))(x, y)
    assert float(found.mean()) == pytest.approx(closed, rel=0.05)


def test_two_sets_of_one_distribution_are_at_no_distance_on_average() -> None:
    found = torch.stack([by(gaussian)(torch.randn(10, 4) * 9, torch.randn(10, 4) * 9).mean() for _ in range(300)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / math.sqrt(300)
    assert float(found.min()) < 0 < float(found.max())


def test_the_frechet_distance_of_known_covariances() -> None:
    # |m|^2 + sum over dimensions of (s_x - s_y)^2, exactly, where both samples have exactly these moments.
    base = torch.randn(400, 3).double()
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    spread, mean = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.3, 0.0, -1.0]).double()
    found = float(frechet_distance(base, base.roll(1, 0) * spread + mean).mean())
    assert found == pytest.approx(float((mean**2).sum() + ((1 - spread) ** 2).sum()), rel=1e-9)


@every_distance
def test_a_share_says_what_leaving_the_pair_out_would_change(distance: Distance) -> None:
    x, y = torch.randn(60, 3).double(), torch.randn(60, 3).double() * 1.5 + 1
    shares = distance(x, y)
    without = torch.stack(
        [distance(torch.cat([x[:i], x[i + 1 :]]), torch.cat([y[:i], y[i + 1 :]])).mean() for i in range(12)]
    )
    changes = (shares.mean() - without) * 59
    assert torch.allclose(changes, (shares - shares.mean())[:12], atol=0.1 * float(shares.std()), rtol=0.1)


@pytest.mark.parametrize("name", ["cubic", "gaussian"])
def test_the_interval_from_shares_covers_the_true_distance(name: str) -> None:
    # 12 prompts with 3 images each; images of one prompt share an offset, in both sets their own.
    draws = torch.Generator().manual_seed(5)

    def one(prompts: int, images: int) -> tuple[Tensor, Tensor]:
        x, y = (
            torch.randn(prompts, 1, 4, generator=draws) * 0.5 + torch.randn(prompts, images, 4, generator=draws)
            for _ in range(2)
        )
        return x.flatten(0, 1) + 0.7, y.flatten(0, 1)

    kernel = cubic if name == "cubic" else lambda a, b: gaussian(a, b, sigma=2.0)
    covered = 0
    truth = float(torch.stack([by(kernel)(*one(300, 3)).mean() for _ in range(8)]).mean())
    names = [f"class/{p}" for p in range(12) for _ in range(3)]
    for trial in range(300):
        found = interval(by(kernel)(*one(12, 3)).numpy(), names, seed=trial, draws=400)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_a_ratio_of_means_is_one_for_equal_values_and_spreads_as_it_does_when_drawn_again() -> None:
    y = torch.rand(40, dtype=torch.float64) + 1
    assert torch.equal(ratio_of_means(y, y), torch.ones(40, dtype=torch.float64))
    pairs = [(x := torch.rand(40, dtype=torch.float64) + 1, 0.5 * x + 0.1 * torch.randn(40)) for _ in range(400)]
    shares = [ratio_of_means(theirs, ours) for ours, theirs in pairs]
    assert float(shares[0].mean()) == pytest.approx(float(pairs[0][1].mean() / pairs[0][0].mean()))
    drawn = torch.stack([share.mean() for share in shares]).std()
    said = torch.stack([share.std() / 40**0.5 for share in shares]).mean()
    assert float(said / drawn) == pytest.approx(1, abs=0.1)
