"""Does what a LoRA taught the base survive the refiner?

`python -m benchmarks.refiner_identity PICTURES --base BASE --refiner REFINER [--tune-refiner] [key=value ...]`

A LoRA is trained on the base, and with --tune-refiner one on the refiner in its own part of the noise. Then the same
prompts are drawn from the same noise by the base, by base and refiner, tuned, tuned and refiner (tuned or not), and
scored side by side as `limner evaluate` does: subject fidelity with 95 % intervals and paired differences.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import limner
from benchmarks.about import about
from limner.drawing import load_base
from limner.evaluate.evaluate import evaluate
from limner.families.family import Family
from limner.generate.draw import check_resolution, draw
from limner.metrics.scores import Difference, Scores
from limner.recipe import Recipe, load_recipe, parse_settings, save_recipe
from limner.refining import load_partner
from limner.result import attach_file
from limner.rundir import RunDir, write_json
from limner.watch import Watch

BASE, BASE_REFINED, TUNED, REFINED, BOTH = (
    "base", "base + refiner", "tuned", "tuned + refiner", "tuned + tuned refiner"
)  # fmt: skip
QUESTIONS = [(TUNED, BASE), (BASE_REFINED, BASE), (REFINED, TUNED), (REFINED, BASE_REFINED), (BOTH, REFINED)]
"""Which arm is compared with which other."""


def main() -> None:
    """Parse the command line, train, draw, score; print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refiner_identity", description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value over the recipe of all trainings and of the drawing")
    parser.add_argument("--base", required=True)
    parser.add_argument("--refiner", required=True)
    parser.add_argument("--recipe", default="lora", help="one whose adapter is a LoRA")
    parser.add_argument("--tune-refiner", action="store_true", help="train a LoRA on the refiner as well")
    parser.add_argument("--work", type=Path, help="keep runs and pictures here; runs that are there are not repeated")
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as passing:
        found = measure(
            given.pictures, given.base, given.refiner, Path(given.work or passing), recipe=given.recipe,
            tune_refiner=given.tune_refiner, settings=parse_settings(given.settings),
        )  # fmt: skip
    for line in table(found):
        print(line)
    if given.out:
        write_json(given.out, {**about(), **found})


def measure(
    pictures: Path,
    base: str,
    refiner: str,
    work: Path,
    *,
    recipe: str = "lora",
    tune_refiner: bool = False,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Train, draw every arm and score them; return scores by encoder and arm, and differences, with intervals."""
    runs = [trained(pictures, recipe, {**settings, "base": base}, work / "run on the base")]
    if tune_refiner:
        own = {**settings, "base": refiner, "generation.begun_by": base}
        runs.append(trained(pictures, recipe, own, work / "run on the refiner"))
    named = draw_arms(runs, refiner, work / "arms")
    first, *others = named.values()
    for run in others:
        shutil.copytree(first.images / "tuned", run.images / "base", dirs_exist_ok=True)
    scores = evaluate(others, work / "comparison.json")
    called = dict(zip(scores.design.arms, named, strict=True))
    return {"base": base, "refiner": refiner, "images": scores.design.images, "prompts": scores.design.prompts,
            "subject_fidelity": [told(scores, key, called) for key in keys(scores)]}  # fmt: skip


def trained(pictures: Path, recipe: str, settings: Mapping[str, Any], folder: Path) -> RunDir:
    """Return a finished run, trained now unless it is there."""
    run = RunDir(folder)
    return run if run.adapter.is_file() else limner.train(pictures, recipe=recipe, settings=settings, run=folder)


def draw_arms(runs: Sequence[RunDir], refiner: str, place: Path) -> dict[str, RunDir]:
    """Draw the comparison's prompts with every arm; return a folder for each that can be evaluated as a run's."""
    plain = load_recipe(runs[0].recipe)
    refined = load_recipe(runs[0].recipe, {"generation.refiner": refiner})
    files = [run.adapter for run in runs]
    arms: dict[str, tuple[Recipe, list[Path]]] = {
        BASE: (plain, []), BASE_REFINED: (refined, []), TUNED: (plain, files[:1]), REFINED: (refined, files[:1]),
    }  # fmt: skip
    if files[1:]:
        arms[BOTH] = (refined, files)
    made: dict[str, RunDir] = {}
    for recipe in (plain, refined):
        family = load_base(recipe, Watch())
        load_partner(family, recipe, Watch())
        for name, (own, adapters) in arms.items():
            if own is recipe:
                made[name] = draw_arm(family, recipe, adapters, runs[0], RunDir(place / name))
    return {name: made[name] for name in arms}


def draw_arm(family: Family, recipe: Recipe, adapters: Sequence[Path], trained: RunDir, arm: RunDir) -> RunDir:
    """Draw the comparison's prompts with the adapters, each on the model that it was trained on."""
    attached = [attach_file(family, file, 1.0) for file in adapters]
    draw(
        family, recipe.evaluation.requests(recipe.pictures.token, recipe.pictures.class_noun or "picture"),
        arm.images / "tuned", sampling=recipe.generation, replace=True, progress=lambda done, total: None,
        resolution_px=check_resolution(family, recipe.resolution),
        about={"base": recipe.base, "identity": family.identity, "adapters": [str(file) for file in adapters]},
    )  # fmt: skip
    for one in attached:
        one.detach()
    shutil.copytree(trained.pictures, arm.pictures, dirs_exist_ok=True)
    save_recipe(recipe, arm.recipe)
    return arm


def keys(scores: Scores) -> list[str]:
    """Return the metrics that are told: subject fidelity, as each encoder sees it."""
    return [metric.key for metric in scores.metrics if metric.kind == "subject_fidelity"]


def told(scores: Scores, key: str, called: Mapping[str, str]) -> dict[str, Any]:
    """Return one metric: the score of each arm and the differences that are asked for; `called` names the arms."""
    (metric,) = (metric for metric in scores.metrics if metric.key == key)
    by_name = {(called[d.arm], called[d.to]): d for d in metric.differences}
    found = [(arm, to, by_name[arm, to]) for arm, to in QUESTIONS if (arm, to) in by_name]
    return {
        "encoder": metric.encoder,
        "levels": {level.name: level.value for level in metric.levels},
        "arms": {called[arm]: score.score.model_dump() for arm, score in metric.arms.items()},
        "differences": [{"arm": arm, "to": to, **_difference(one)} for arm, to, one in found],
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {"mean": one.score.mean, "low": one.score.low, "high": one.score.high, "p": one.p, "finding": one.finding}


def table(found: Mapping[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [f"{found['base']} and {found['refiner']}: {json.dumps(found['images'])} images"]
    for metric in found["subject_fidelity"]:
        lines.append(f"subject fidelity as {metric['encoder']} sees it: mean and 95 % interval")
        lines += [f"  {name:<44}{_interval(score)}" for name, score in metric["arms"].items()]
        for one in metric["differences"]:
            what = f"{one['arm']} - {one['to']}"
            lines.append(f"  {what:<44}{_interval(one)}   {one['finding']}")
    return lines


def _interval(score: Mapping[str, Any]) -> str:
    ends = "" if score["low"] is None else f" ({score['low']:+.3f} to {score['high']:+.3f})"
    return f"{score['mean']:+.3f}{ends}"


if __name__ == "__main__":
    main()
