"""The schema of bleed.json: how like each subject the pictures of each trigger are, drawn together and alone."""

from __future__ import annotations

from limner.metrics.scores import Interval
from limner.spec import Spec

LEAST_PROMPTS = 6
"""With fewer prompts nothing is claimed, as everywhere."""


class Cell(Spec):
    """The pictures of one trigger against the pictures of one subject, as mean cosines."""

    trigger: str
    """Whose token the prompts had."""
    subject: str
    """Whose real pictures they are compared with."""
    together: Interval
    """With every adapter at work."""
    alone: Interval
    """With the trigger's own adapter and no other."""
    change: Interval
    """Together minus alone, over the same prompts and initial noise."""
    p: float | None = None
    """Two-sided p of the change after Holm's correction over all pairs of two; null for a trigger's own subject."""


class Bleed(Spec):
    """How far several adapters on one base get into each other's subjects."""

    names: tuple[str, ...]
    """The triggers, in the order of the rows."""
    tokens: dict[str, str]
    """What the prompts say for each: token and class noun."""
    base: str
    encoder: str
    """Who compared."""
    about: str
    """What that encoder is."""
    cells: tuple[Cell, ...]

    def cell(self, trigger: str, subject: str) -> Cell:
        """Return one trigger's pictures against one subject's."""
        return next(cell for cell in self.cells if (cell.trigger, cell.subject) == (trigger, subject))

    @property
    def worst(self) -> Cell:
        """Return the cell of two subjects that are most alike where they should not be: drawn together."""
        return max((c for c in self.cells if c.trigger != c.subject), key=lambda cell: cell.together.mean)

    @property
    def most_changed(self) -> Cell:
        """Return the cell of two subjects that came nearest by being drawn together."""
        return max((c for c in self.cells if c.trigger != c.subject), key=lambda cell: cell.change.mean)

    @property
    def headline(self) -> str:
        """Return the answer in a few words: who gets into whom by being drawn together."""
        moved = self.most_changed
        if moved.change.low is None or moved.change.n_units < LEAST_PROMPTS:
            return "Too few prompts to tell who bleeds into whom"
        if moved.change.mean > 0 and moved.p is not None and moved.p < 0.05:
            return f"{moved.trigger} bleeds into {moved.subject}"
        return "No bleed that these pictures show"

    @property
    def lines(self) -> tuple[str, ...]:
        """Return what it says in words, the largest bleed first."""
        worst, moved = self.worst, self.most_changed
        own = self.cell(worst.trigger, worst.trigger)
        lost = min((self.cell(name, name) for name in self.names), key=lambda cell: cell.change.mean)
        return (
            f"max bleed: {worst.trigger!r} -> {worst.subject!r} {worst.together.mean:.2f} "
            f"(own {own.together.mean:.2f}; drawn alone {worst.alone.mean:.2f})",
            f"drawn together, {moved.trigger!r} comes nearer to {moved.subject!r} by {_signed(moved.change)}",
            f"likeness to its own subject fares worst with {lost.trigger!r}: {_signed(lost.change)} against alone",
        )


def _signed(change: Interval) -> str:
    """Return a difference with its interval."""
    ends = "" if change.low is None else f" (95 % interval {change.low:+.3f} to {change.high:+.3f})"
    return f"{change.mean:+.3f}{ends}"
