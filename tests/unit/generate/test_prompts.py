"""The prompts of the comparison."""

from collections import defaultdict

from limner.evaluate.statistics import LEAST_UNITS
from limner.generate.prompts import Evaluation


def test_every_set_has_enough_prompts_for_a_claim():
    prompts = defaultdict(set)
    for request in Evaluation().requests("sks", "dog"):
        prompts[request.set].add(request.prompt)
    assert prompts.keys() == {"subject", "class", "other"}
    assert min(map(len, prompts.values())) >= LEAST_UNITS
    assert not any("sks" in prompt for name in ("class", "other") for prompt in prompts[name])
