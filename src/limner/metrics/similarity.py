"""The metrics' mathematics: pure functions of feature vectors. Cosines lie in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cosines(a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
    """Return the cosine of every row of `a` with every row of `b`, in float64 so that order does not matter."""
    normalise = torch.nn.functional.normalize
    return (normalise(a.double(), dim=1) @ normalise(b.double(), dim=1).T).clamp(-1, 1)


def mean_cosine(a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"]) -> Float[Tensor, " rows"]:
    """Return each row's mean cosine with all rows of `b`; their mean is the mean over all pairs (arXiv:2208.12242)."""
    return cosines(a, b).mean(1)


def paired_cosine(a: Float[Tensor, "rows dim"], b: Float[Tensor, "rows dim"]) -> Float[Tensor, " rows"]:
    """Return the cosine of each row of `a` with the same row of `b`; exactly 1 where they are equal."""
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1).clamp(-1, 1)
    return torch.where((a == b).all(1), torch.ones_like(cosine), cosine)


def nearest_cosine(a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"]) -> Float[Tensor, " rows"]:
    """Return each row's largest cosine with any row of `b`."""
    return cosines(a, b).amax(1)


def leave_one_out(a: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows others"]:
    """Return each row's cosines with every other row: what the pictures of one subject score among themselves."""
    n = len(a)
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    return cosines(a, a)[off_diagonal].view(n, n - 1)


def distance_within_groups(a: Float[Tensor, "rows dim"], group: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return each row's mean distance 1 - cosine to the other rows of its group; NaN for a row that is alone."""
    same = (group[:, None] == group[None, :]) & ~torch.eye(len(a), dtype=torch.bool)
    distance = torch.where(same, 1 - cosines(a, a), 0.0)
    return distance.sum(1) / same.sum(1)


def drift(a: Float[Tensor, "rows dim"], base: Float[Tensor, "rows dim"]) -> Float[Tensor, " rows"]:
    """Return (1 - cosine) / 2 of each row with the base's row of the same prompt and seed: 0 unchanged, 1 opposite."""
    return (1 - paired_cosine(a, base)) / 2


def foreground_cosine(
    patches: Float[Tensor, "rows patches dim"], foregrounds: Sequence[Float[Tensor, "_ dim"]]
) -> Float[Tensor, "rows references"]:
    """Return how well each picture holds each reference's foreground: the mean over its patches of the best cosine.

    The concept preservation of MaSC (2026): what lies behind the subject, in either picture, does not count.
    """
    rows = torch.nn.functional.normalize(patches.double(), dim=-1)
    best = [
        (rows @ torch.nn.functional.normalize(one.double(), dim=-1).T).clamp(-1, 1).amax(1).mean(1)
        for one in foregrounds
    ]
    return torch.stack(best, dim=1)


def is_nearest(a: Float[Tensor, "rows dim"], own: Float[Tensor, "_ dim"], others: Sequence[Tensor]) -> Tensor:
    """Return for each row 1 where its mean cosine with `own` is above that with each set of `others`, else 0."""
    likeness = torch.stack([mean_cosine(a, features) for features in (own, *others)])
    return (likeness[0] > likeness[1:].amax(0)).double()


def leave_one_out_rate(own: Float[Tensor, "rows dim"], others: Sequence[Tensor]) -> float:
    """Return how often a row of `own` is nearest to the rest of `own`: the identification rate of real pictures."""
    n = len(own)
    rest = [torch.cat([own[:i], own[i + 1 :]]) for i in range(n)]
    return sum(float(is_nearest(own[i : i + 1], rest[i], others)) for i in range(n)) / n
