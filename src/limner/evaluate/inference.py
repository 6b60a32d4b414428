"""What drawing took, put together: medians, and the cost against the base with its interval over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from limner.metrics.inference import Inference, Measurement, Pair, Ratio, Taken

LEAST_FOR_P95 = 20
"""Fewer rounds have no 95th percentile but their largest value."""
Seconds = Float[np.ndarray, " rounds"]


def ratio_to(arm: Seconds, base: Seconds) -> Ratio:
    """Return how many times the base's seconds an arm takes; value by value of the same round.

    Hodges and Lehmann's estimate on logarithms, with the interval that belongs to Wilcoxon's signed ranks. Where noise
    hits both alike the logarithms' differences are symmetric, and the interval exact whatever that noise is; a round
    that something else on the machine made much longer hardly moves the estimate.
    """
    differences = np.log(arm / base)
    first, second = np.triu_indices(len(differences))
    means = np.sort((differences[first] + differences[second]) / 2)
    cut = _signed_ranks_below(len(differences))
    low, high = (float(np.exp(means[cut])), float(np.exp(means[-1 - cut]))) if cut >= 0 else (None, None)
    return Ratio(ratio=float(np.exp(np.median(means))), low=low, high=high, rounds=len(arm),
                 conclusive=low is not None and high is not None and not low <= 1 <= high)  # fmt: skip


def _signed_ranks_below(count: int, level: float = 0.025) -> int:
    """Return the largest sum of positive ranks that so many values stay at or below with this probability; -1: none.

    Hollander and Wolfe 1999, section 3.3: the sum's distribution is that of a subset of 1 to `count`.
    """
    probability = np.ones(1)
    for rank in range(1, count + 1):
        longer = np.zeros(len(probability) + rank)
        longer[: len(probability)] += probability / 2
        longer[rank:] += probability / 2
        probability = longer
    return int(np.searchsorted(np.cumsum(probability), level, side="right")) - 1


def measurements(taken: Mapping[tuple[str, Pair], Sequence[Taken]], arms: Sequence[str]) -> tuple[Measurement, ...]:
    """Return what each arm, the base first, took at each (batch, steps); a round that was broken off does not count."""
    base = arms[0]
    found: list[Measurement] = []
    for (arm, pair), rows in taken.items():
        of_base = taken.get((base, pair), ())
        rounds = min(len(rows), len(of_base))
        if rounds:
            compared = None if arm == base else [one.seconds for one in of_base[:rounds]]
            found.append(_measurement(arm, pair, rows[:rounds], compared))
    return tuple(sorted(found, key=lambda m: (m.batch, m.steps, arms.index(m.arm))))


def _measurement(arm: str, pair: Pair, rows: Sequence[Taken], base: Sequence[float] | None) -> Measurement:
    seconds = np.array([one.seconds for one in rows])
    joules = [one.joules for one in rows if one.joules is not None]
    return Measurement(
        arm=arm, steps=pair.steps, batch=pair.batch,
        median_s=float(np.median(seconds)) / pair.batch,
        p95_s=float(np.percentile(seconds, 95)) / pair.batch if len(rows) >= LEAST_FOR_P95 else None,
        pictures_per_s=float(pair.batch * len(rows) / seconds.sum()),
        text_s=float(np.median([one.text for one in rows])) / pair.batch,
        denoise_s=float(np.median([one.denoise for one in rows])) / pair.batch,
        decode_s=float(np.median([one.decode for one in rows])) / pair.batch,
        joules=sum(joules) / pair.batch / len(rows) if joules else None,
        to_base=None if base is None else ratio_to(seconds, np.array(base)),
        seconds=tuple(round(float(value), 6) for value in seconds),
    )  # fmt: skip


def in_lines(found: Inference) -> list[str]:
    """Return what was measured as lines to read, one for each number of steps and batch."""
    lines: list[str] = []
    for base in (m for m in found.measurements if m.to_base is None):
        own = f"{base.steps} step{'s' * (base.steps > 1)}, batch {base.batch}: base {base.median_s:.3g} s a picture"
        tuned = [m for m in found.measurements if m.to_base and (m.steps, m.batch) == (base.steps, base.batch)]
        lines.append("; ".join([own, *(f"{m.arm} {_times(m.to_base)}" for m in tuned if m.to_base)]))
    return lines


def _times(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"x{ratio.ratio:.3f} (too few rounds for an interval)"
    return f"x{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
