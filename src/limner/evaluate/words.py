"""Says what an interval allows to say."""

from __future__ import annotations

from limner.evaluate.statistics import LEAST_UNITS
from limner.metrics.scores import Finding, Interval


def difference_in_words(difference: Interval, finding: Finding) -> str:
    """Return one sentence about a paired difference, tuned minus base."""
    if finding == "not tested":
        return f"Moved by {_with_ends(difference, sign=False)} from the base."
    prompts = f", {difference.n_units} prompts" if difference.unit == "prompt" else " of one prompt"
    n = f"{difference.n_images} pairs{prompts}"
    if finding == "not conclusive":
        return _too_few(difference)
    if finding == "no difference":
        if difference.mean == difference.low == difference.high == 0:
            return f"No difference: every pair of images has the same value ({n})."
        return f"No difference found: {_with_ends(difference)} includes 0 ({n})."
    return f"{finding.capitalize()} by {_with_ends(difference)} ({n})."


def not_held(difference: Interval, claims: int, p: float) -> str:
    """Return the sentence about a difference that does not outlast the correction for everything that is claimed."""
    return (
        f"Not conclusive: {_with_ends(difference)} leaves out 0, but one of {claims} comparisons may do so by chance "
        f"(p = {p:.2f} after Holm's correction)."
    )


def _too_few(difference: Interval) -> str:
    """Return the refusal to claim anything from too few images."""
    images = f"{difference.n_images} image{'s' if difference.n_images > 1 else ''} per side"
    if difference.low is None or difference.high is None:
        return f"Not conclusive: only {images}, no interval can be given and no difference can be claimed."
    half = (difference.high - difference.low) / 2
    prompts = f" from {difference.n_units} prompts" if difference.unit == "prompt" else " of one prompt"
    return (
        f"Not conclusive: only {images}{prompts}: interval is ±{half:.3f}, no difference can be claimed "
        f"(it takes {LEAST_UNITS} prompts or more)."
    )


def _with_ends(value: Interval, *, sign: bool = True) -> str:
    form = "{:+.3f}" if sign else "{:.3f}"
    ends = "" if value.low is None or value.high is None else f" [{form}, {form}]".format(value.low, value.high)
    return form.format(value.mean) + ends
