"""Says what a difference over subjects allows to say, and what it would take to say more."""

from __future__ import annotations

from limner.metrics.scores import Finding, Interval
from limner.metrics.study import StudyDesign, StudyDifference

UNITS = {"subject": "subjects", "prompt": "prompts", "image": "images", "training": "trainings"}


def design_in_words(subjects: int, seeds: int) -> str:
    """Return how large a study is: "5 subjects × 2 training seeds"."""
    named = "one subject" if subjects == 1 else f"{subjects} subjects"
    return f"{named} × {'one training seed' if seeds == 1 else f'{seeds} training seeds'}"


def finding_in_words(score: Interval, finding: Finding, *, design: str, least: int, detectable: float | None) -> str:
    """Return one sentence about a paired difference."""
    size = _size(score)
    if finding == "not tested":
        return f"Moved by {size.replace('+', '')} from the base ({design})."
    if finding == "not conclusive" and score.low is None:
        return f"Not conclusive: {size} from {design}: no interval can be given."
    if finding == "not conclusive":
        few = f"{score.n_units} {UNITS[score.unit]}"
        return f"Not conclusive: {size} ({design}); nothing is claimed from {few}, it takes {least} or more."
    if finding == "no difference":
        if score.mean == score.low == score.high == 0:
            return f"No difference: every pair of images has the same value ({design})."
        seen = f" A true difference of {detectable:.3f} would have been found 4 times in 5." if detectable else ""
        return f"No difference found: {size} includes 0 ({design}).{seen}"
    return f"{finding.capitalize()} by {size} ({design})."


def needed_in_words(difference: StudyDifference, units: int | None, *, least: int, claims: int) -> str:
    """Return what it would take to tell a difference of the size that was seen; nothing where something was found."""
    score = difference.score
    if difference.finding != "not conclusive" or not score.mean:
        return ""
    among = f" among {claims} claims" if claims > 1 else ""
    kind = "prompts of this subject" if score.unit == "prompt" else f"such {UNITS[score.unit]}"
    many = "more than 1,000" if units is None else f"about {max(units, least, score.n_units + 1):,}"
    return f"If it is truly {abs(score.mean):.3f}, it takes {many} {kind} to see it{among} (power 80 %)."


def limits_in_words(design: StudyDesign) -> list[str]:
    """Return what this design cannot tell."""
    said = []
    if len(design.subjects) == 1:
        said.append("One subject: intervals speak of other prompts for this subject, not of other subjects.")
    else:
        said.append("Intervals speak of other subjects, with these prompts, which were fixed in advance.")
    if len(design.seeds) == 1:
        said.append("One training seed: how much another training of the same arm differs is not known.")
    return said


def _size(score: Interval) -> str:
    ends = "" if score.low is None or score.high is None else f" [{score.low:+.3f}, {score.high:+.3f}]"
    return f"{score.mean:+.3f}{ends}".replace("-", "\N{MINUS SIGN}")
