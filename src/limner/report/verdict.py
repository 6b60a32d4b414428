"""Says in a few sentences what the scores say, with their numbers."""

from __future__ import annotations

from limner.metrics.scores import Difference, Interval, MetricScore, Scores

HEADLINES = {
    "better": "It learned the subject.",
    "worse": "It moved away from the subject.",
    "no difference": "No difference found.",
    "not conclusive": "Too few images to tell.",
}


def headline(scores: Scores) -> str:
    """Return the answer in a few words: likeness to the subject, by the first encoder."""
    metric = scores.find("subject_fidelity")
    return HEADLINES.get(metric.differences[0].finding, "Base against tuned.") if metric else "Base against tuned."


def verdict(scores: Scores, arm: str) -> list[str]:
    """Return the paragraphs about one tuned arm: likeness; what stayed; prompts, and what to look at with care."""
    paragraphs = (
        (_likeness(scores, arm),),
        (_class_kept(scores, arm), _drift(scores, arm)),
        (_prompt(scores, arm), _colour_alone(scores, arm), _copies(scores, arm)),
    )
    return [" ".join(filter(None, sentences)) for sentences in paragraphs if any(sentences)]


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


def of_arm(metric: MetricScore, arm: str) -> Difference:
    """Return an arm's difference to the base."""
    return next(difference for difference in metric.differences if difference.arm == arm)


def _likeness(scores: Scores, arm: str) -> str:
    metric = scores.find("subject_fidelity")
    if metric is None:
        return ""
    difference, base, tuned = of_arm(metric, arm), metric.arms[scores.design.arms[0]], metric.arms[arm]
    size = with_ends(difference.score, sign=True)
    values = f"{number(tuned.score.mean)} against {number(base.score.mean)}"
    if difference.finding == "not conclusive":
        return difference.words
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
    difference = of_arm(metric, arm)
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
    difference = of_arm(metric, arm)
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
    if of_arm(colours, arm).finding == "better" and of_arm(learned, arm).finding != "better":
        return (
            "Only the colours came nearer to the subject: the colour histogram sees a gain that the encoder does not."
        )
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
