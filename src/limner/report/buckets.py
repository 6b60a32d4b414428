"""How the pictures were fitted: which shape each got, what the crops took away, how they make batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BucketRow:
    """One shape and its pictures, in words and in per cent."""

    size: str
    outline: tuple[float, float]
    """Width and height, in per cent of the longest side of all shapes."""
    count: int
    share: float
    """Of the fullest shape's pictures, in per cent."""
    lost: float
    """Mean share of a picture that its crop takes away, in per cent."""
    most_lost: str
    resized: str
    batches: str


def bucket_rows(facts: Mapping[str, Any]) -> tuple[BucketRow, ...]:
    """Lay out the buckets that a manifest of training pictures holds; none where an older one holds no batches."""
    buckets = [bucket for bucket in facts.get("buckets", ()) if "batches" in bucket]
    longest = max((side for bucket in buckets for side in bucket["size"]), default=1)
    fullest = max((bucket["count"] for bucket in buckets), default=1)
    return tuple(_row(bucket, longest, fullest) for bucket in buckets)


def _row(bucket: Mapping[str, Any], longest: int, fullest: int) -> BucketRow:
    width, height = bucket["size"]
    name, most = bucket["most_lost"]
    low, high = (f"{scale:.2f}" for scale in bucket["scales"])
    return BucketRow(
        size=f"{width} × {height}",
        outline=(100 * width / longest, 100 * height / longest),
        count=bucket["count"],
        share=100 * bucket["count"] / fullest,
        lost=100 * bucket["lost_share"],
        most_lost=f"{most:.1%}, {name}" if most else "",
        resized=f"× {low}" if low == high else f"× {low} to {high}",
        batches=_batches(bucket["batches"]),
    )


def _batches(counts: Sequence[Sequence[int | float]]) -> str:
    """Return the batches in words: "2 of 4, 1 of 3"."""
    return ", ".join(f"{number:.4g} of {size}" for size, number in counts)
