"""Distances between two sets of images, as one value an image whose mean is the distance between the sets.

Row i of both sets comes from one prompt and one seed. Such a pair is never compared with itself, only with other seeds,
so that equal sets are at distance 0 exactly and unequal ones are not flattered by what they share (Gretton et al. 2012,
equation 4). The values spread as the distance does when its images are drawn again: a distance is not linear in its
images, and twice their deviation is the first order of that (the values of the jackknife).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "rows dim"]


def cubic(x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
    """Return KID's kernel, (x . y / dim + 1)^3, in float64 (arXiv:1801.01401)."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def gaussian(
    x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"], *, sigma: float = 10.0
) -> Float[Tensor, "rows columns"]:
    """Return CMMD's kernel, exp(-|x - y|^2 / (2 sigma^2)), in float64 (arXiv:2401.09603)."""
    x, y = x.double(), y.double()
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return torch.exp(-squared.clamp(min=0) / (2 * sigma**2))


def kernel_distance(
    xx: Float[Tensor, "rows rows"], yy: Float[Tensor, "rows rows"], xy: Float[Tensor, "rows rows"]
) -> Float[Tensor, " rows"]:
    """Return each pair's share of the squared MMD, unbiased, from the kernel within and between two sets."""
    n = len(xx)
    # Both halves of the sum are taken in the same way, so that equal sets leave nothing, not even rounding.
    h = (xx + xx.T) / 2 + (yy + yy.T) / 2 - (xy + xy.T)
    share = h.fill_diagonal_(0).sum(1) / (n - 1)
    return 2 * share - share.mean()


def ratio_of_means(x: Float[Tensor, " rows"], y: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return mean(x) / mean(y), of pairs of values above 0, as one value a pair whose mean it is; 1 of equal ones.

    The values spread as the ratio does: r + (x_i - r y_i) / mean(y) (Cochran 1977, section 6.3, the ratio estimator).
    """
    x, y = x.double(), y.double()
    ratio = x.mean() / y.mean()
    return ratio + (x - ratio * y) / y.mean()


def frechet_distance(x: Rows, y: Rows) -> Float[Tensor, " rows"]:
    """Return each pair's share of the Frechet distance between two Gaussians (arXiv:1706.08500, equation 6).

    The distance is |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)); its gradient in C_x is I - T, where T is the map
    that carries the one Gaussian onto the other.
    """
    if torch.equal(x, y):
        return torch.zeros(len(x), dtype=torch.float64)
    x, y = x.double(), y.double()
    mean = x.mean(0) - y.mean(0)
    u, v = x - x.mean(0), y - y.mean(0)
    root_x, inverse_x = _roots(torch.cov(x.T))
    between = _roots(root_x @ torch.cov(y.T) @ root_x)[0]
    distance = mean @ mean + torch.cov(x.T).trace() + torch.cov(y.T).trace() - 2 * between.trace()
    forth = inverse_x @ between @ inverse_x
    back = root_x @ torch.linalg.pinv(between, hermitian=True) @ root_x
    influence = 2 * (u - v) @ mean + _bent(u, forth) + _bent(v, back)
    return distance + influence - influence.mean()


def _bent(rows: Rows, onto: Float[Tensor, "dim dim"]) -> Float[Tensor, " rows"]:
    """Return x (I - T) x of each row."""
    return (rows**2).sum(1) - ((rows @ onto) * rows).sum(1)


def _roots(matrix: Float[Tensor, "dim dim"]) -> tuple[Tensor, Tensor]:
    """Return the square root of a covariance and that root's inverse, with nothing where there is no variance."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root = values.clamp(min=0).sqrt()
    kept = root > 1e-7 * root.max()
    inverse = torch.where(kept, 1 / root.where(kept, torch.ones_like(root)), 0.0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T
