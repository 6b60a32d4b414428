"""Distances between sets of images against torchmetrics, with a feature module of our own and no download."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from limner.metrics.distances import cubic, frechet_distance, kernel_distance


class Corner(nn.Module):
    """The first pixels of a picture as its features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_features = dim

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, : self.dim].double() / 255


def pictures(n: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high, (n, 3, 4, 4), dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_the_kernel_distance_equals_torchmetrics_where_no_pair_is_left_out() -> None:
    n, corner = 12, Corner(6)
    x, y = pictures(n, 0, 200), pictures(n, 60, 256)
    kid = KernelInceptionDistance(feature=corner, subsets=1, subset_size=n)
    kid.update(y, real=True)
    kid.update(x, real=False)
    expected = float(kid.compute()[0])
    a, b = corner(x), corner(y)
    found = []
    for shift in range(n):  # over all shifts every pair is left out equally often, so their mean leaves out none
        other = b.roll(shift, 0)
        found.append(float(kernel_distance(cubic(a, a), cubic(other, other), cubic(a, other)).mean()))
    assert sum(found) / n == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_equals_torchmetrics() -> None:
    corner = Corner(6)
    x, y = pictures(60, 0, 200), pictures(60, 60, 256)
    fid = FrechetInceptionDistance(feature=corner, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    fid.update(y, real=True)
    fid.update(x, real=False)
    found = float(frechet_distance(corner(x), corner(y)).mean())
    assert found == pytest.approx(float(fid.compute()), rel=1e-6)
