"""Numbers and lists as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from limner.metrics.scores import Interval


def number(value: float, *, sign: bool = False) -> str:
    """Return a score with two digits, three where two would show nothing; a minus sign is a minus sign."""
    digits = 2 if abs(value) >= 0.095 or value == 0 else 3
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def with_ends(value: Interval, *, sign: bool = False) -> str:
    """Return a mean with its interval in brackets, all with as many digits as the mean needs."""
    if value.low is None or value.high is None:
        return number(value.mean, sign=sign)
    ends = (value.mean, value.low, value.high)
    digits = 2 if abs(value.mean) >= 0.095 or not any(ends) else 3
    mean, low, high = (f"{v:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}") for v in ends)
    return f"{mean}\N{NO-BREAK SPACE}[{low}, {high}]"


def in_count(count: int) -> str:
    """Return a number of parameters."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}"


def in_time(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def in_bytes(count: float) -> str:
    """Return a file size in decimal units, as file managers show it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
