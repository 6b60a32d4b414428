"""Says what was found and which arm is better for what; claims only what the scores call conclusive."""

from __future__ import annotations

from limner.metrics.scores import Difference, Finding, Interval, MetricScore, Scores
from limner.metrics.study import Study, StudyMetric
from limner.report.numbers import listed, with_ends

SAYS = {
    "subject_fidelity": ("likeness to the subject", "{} looks more like the subject than"),
    "prompt_following": ("following prompts", "{} follows prompts better than"),
    "class_kept": ("keeping the class", "{} keeps others of the class further from the subject than"),
    "other_drift": ("keeping everything else", "{} changes other things less than"),
}
"""The questions that arms are compared on: what each is about, and how a winner is said."""
HEADLINES = {
    "better": "{} learned the subject.",
    "worse": "{} moved away from the subject.",
    "no difference": "No difference found.",
    "not conclusive": "Too few images to tell.",
}
EVERYONE = {1: "It", 2: "Both", 3: "All three", 4: "All four"}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


def headline(scores: Scores | Study) -> str:
    """Return the answer in a few words: likeness to the subject, by the first encoder."""
    findings = _learned(scores)
    if not findings:
        return "Base against tuned."
    count = len(findings)
    if len(set(findings.values())) == 1:
        return HEADLINES[next(iter(findings.values()))].format(EVERYONE.get(count, f"All {count}"))
    learned = sum(finding == "better" for finding in findings.values())
    if not learned:
        is_open = "not conclusive" in findings.values()
        return "Nothing conclusive about likeness." if is_open else "None learned the subject."
    text = HEADLINES["better"].format(f"{NUMBERS.get(learned, learned)} of {NUMBERS.get(count, count)}")
    return text[0].upper() + text[1:]


def who_learned(scores: Scores | Study) -> str:
    """Return which arms learned the subject and of which it is open; nothing where it is the same for all."""
    findings = _learned(scores)
    learned, unclear = ([a for a, found in findings.items() if found == f] for f in ("better", "not conclusive"))
    if not learned or len(learned) == len(findings):
        return ""
    return f"Learned by {listed(learned)}" + (f"; of {listed(unclear)} it is open." if unclear else ".")


def which_for_what(scores: Scores | Study) -> list[str]:
    """Return what sets the tuned arms apart: a sentence for each claim, then what is the same and what is open."""
    claims: list[str] = []
    same: list[str] = []
    unclear: list[str] = []
    for kind, (topic, says) in SAYS.items():
        metric = scores.find(kind)
        between = _between(metric, scores) if metric else []
        claimed = [_oriented(d) for d in between if d.conclusive]
        for winner in dict.fromkeys(winner for winner, _, _ in claimed):
            beaten = [f"{loser}, by {with_ends(size)}" for w, loser, size in claimed if w == winner]
            claims.append(f"{says.format(winner)} {'; and than '.join(beaten)}.")
        if between and not claimed:
            (unclear if any(d.finding == "not conclusive" for d in between) else same).append(topic)
    if same:
        claims.append(f"No difference between them was found in {listed(same)}.")
    if unclear:
        claims.append(f"Nothing can be claimed about {listed(unclear)}.")
    return claims


def _learned(scores: Scores | Study) -> dict[str, Finding]:
    """Return what each tuned arm's likeness to the subject allows to say."""
    metric = scores.find("subject_fidelity")
    base, *tuned = scores.design.arms
    return {arm: metric.difference(arm, base).finding for arm in tuned} if metric else {}


def _between(metric: MetricScore | StudyMetric, scores: Scores | Study) -> list[Difference]:
    return [d for d in metric.differences if d.to != scores.design.arms[0]]


def _oriented(difference: Difference) -> tuple[str, str, Interval]:
    """Return who did better, than whom, and by how much as a positive number."""
    score = difference.score
    winner, loser = (difference.arm, difference.to)
    if difference.finding == "worse":
        winner, loser = loser, winner
    if score.mean < 0:
        low, high = (None if end is None else -end for end in (score.high, score.low))
        score = score.model_copy(update={"mean": -score.mean, "low": low, "high": high})
    return winner, loser, score
