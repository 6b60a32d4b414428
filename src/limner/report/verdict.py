"""Says in a few sentences what one arm changed, with the numbers."""

from __future__ import annotations

from limner.metrics.scores import Scores
from limner.report.numbers import number, with_ends


def verdict(scores: Scores, arm: str) -> list[str]:
    """Return the paragraphs about one tuned arm: likeness; what stayed; prompts, and what to look at with care."""
    paragraphs = (
        (_likeness(scores, arm),),
        (_class_kept(scores, arm), _drift(scores, arm)),
        (_prompt(scores, arm), _colour_alone(scores, arm), _background_alone(scores, arm), _copies(scores, arm)),
    )
    return [" ".join(filter(None, sentences)) for sentences in paragraphs if any(sentences)]


def _likeness(scores: Scores, arm: str) -> str:
    metric = scores.find("subject_fidelity")
    if metric is None:
        return ""
    reference = scores.design.arms[0]
    difference, base, tuned = metric.difference(arm, reference), metric.arms[reference], metric.arms[arm]
    size = with_ends(difference.score, sign=True)
    values = f"{number(tuned.score.mean)} against {number(base.score.mean)}"
    if difference.finding == "not conclusive":
        return f"Whether it looks more like the subject is open. {difference.words}"
    if difference.finding == "no difference":
        return f"The {arm} model looks no more like the subject than the base does: {values}, difference {size}."
    more = "more" if difference.finding == "better" else "less"
    text = f"With the same prompts and seeds the {arm} model looks {more} like the subject than the base: {values}, "
    text += f"a difference of {size}"
    level = {x.name: x.value for x in metric.levels}
    if "within" in level and "between" in level and level["within"] > level["between"]:
        text += f". Real pictures of it reach {number(level['within'])}, others of the class {number(level['between'])}"
    return text + "."


def _class_kept(scores: Scores, arm: str) -> str:
    metric = scores.find("class_kept")
    if metric is None:
        return ""
    difference = metric.difference(arm, scores.design.arms[0])
    size = with_ends(difference.score, sign=True)
    within = next((x.value for x in metric.levels if x.name == "within"), None)
    way = within - metric.arms[scores.design.arms[0]].score.mean if within is not None else 0.0
    share = f", {difference.score.mean / way:.0%} of the way to its real pictures" if way > 0 else ""
    return {
        "no difference": f"Others of the class stayed themselves: no rise in likeness to the subject found, {size}.",
        "better": f"Others of the class did not turn into the subject: their likeness to it fell, {size}.",
        "worse": f"Others of the class moved towards the subject: their likeness to it rose by {size}{share}.",
    }.get(difference.finding, f"Whether others of the class stayed themselves is open. {difference.words}")


def _drift(scores: Scores, arm: str) -> str:
    metric = scores.find("other_drift")
    if metric is None:
        return ""
    moved = metric.arms[arm].score.mean
    text = f"Images of other things moved by {number(moved)}"
    level = next((x.value for x in metric.levels if x.name == "another_seed"), None)
    if level:
        text += f"; another seed alone moves them by {number(level)}"
    return text + "."


def _prompt(scores: Scores, arm: str) -> str:
    metric = scores.find("prompt_following")
    if metric is None:
        return ""
    difference = metric.difference(arm, scores.design.arms[0])
    size = with_ends(difference.score, sign=True)
    return {
        "no difference": f"Prompts are followed as before: no difference found, {size}.",
        "better": f"Prompts are followed better than before, {size}.",
        "worse": f"Prompts are followed less well than before, {size}.",
    }.get(difference.finding, "")


def _colour_alone(scores: Scores, arm: str) -> str:
    """Return a warning where the colour histogram sees the likeness and the learned encoder does not."""
    learned, colours = scores.find("subject_fidelity"), scores.find("subject_fidelity", "colour_histogram")
    if learned is None or colours is None or learned is colours:
        return ""
    by_learned, by_colours = (m.difference(arm, scores.design.arms[0]).finding for m in (learned, colours))
    if by_colours == "better" and by_learned in ("no difference", "worse"):
        return (
            "Only the colours came nearer to the subject: the colour histogram sees a gain that the encoder does not."
        )
    return ""


def _background_alone(scores: Scores, arm: str) -> str:
    """Return a warning where the whole picture came nearer to the subject and what is inside the masks did not."""
    whole, masked = scores.find("subject_fidelity"), scores.find("masked_fidelity")
    if whole is None or masked is None:
        return ""
    by_whole, by_masked = (m.difference(arm, scores.design.arms[0]).finding for m in (whole, masked))
    if by_whole == "better" and by_masked in ("no difference", "worse"):
        return "Inside the masks it came no nearer to the subject: look for copied backgrounds."
    return ""


def _copies(scores: Scores, arm: str) -> str:
    metric = scores.find("copying")
    if metric is None or not metric.arms[arm].beyond_limit:
        return ""
    base, tuned = metric.arms[scores.design.arms[0]], metric.arms[arm]
    return (
        f"Look for copies: {tuned.beyond_limit} of {tuned.score.n_images} images come nearer to a training picture "
        f"than any two training pictures do to each other (base: {base.beyond_limit})."
    )
