"""What few steps keep of many, and how much faster they are: `python -m benchmarks.few_steps --prompts FILE --run RUN`.

FILE has a prompt a line, with {subject} and {class_noun} where RUN is upon a subject. The base draws the odd lines to
teach a few-step adapter, unless RUN is distilled already; the even ones, which it has never seen, are drawn from the
same noise by four arms: the base in many steps with guidance, in few steps as it draws otherwise, in few steps at the
adapter's cost (its sampler, no guidance), and the adapter in few. Upon a subject all four have the subject's adapter.

Scored is how well they show what the prompt says, by the base's own judge, upon a subject how like it they are, and how
far the pictures as a set are from those of many steps (the unbiased kernel distance of `class_kd`). Shares of the many
steps' score, and differences between the adapter and each base in few steps, have 95 % intervals over prompts. Times
are taken in turn, a picture of each arm a round, with the adapter folded in as live drawing does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.about import about
from limner.distilling import distill
from limner.evaluate.encoders import encoders_of
from limner.evaluate.images import read_images
from limner.evaluate.look import look
from limner.evaluate.statistics import interval
from limner.generate.draw import Request, Sampling, check_resolution, draw, draw_batch, requests_for
from limner.metrics.metric import View
from limner.metrics.standard import first_of, standard_metrics
from limner.opening import Wanted, opened, what_draws
from limner.recipe import Recipe, load_recipe, parse_settings
from limner.rundir import RunDir
from limner.terminal import Lines

MANY, BASE_FEW, BASE_CHEAP, FEW = (
    "base, many steps", "base, few steps", "base, few steps, adapter's cost", "adapter, few steps",
)  # fmt: skip
ARMS = (MANY, BASE_FEW, BASE_CHEAP, FEW)
DRAWS = 10_000
QUESTIONS = ("prompt_following", "subject_fidelity")
"""Whose scores are told as shares of the many steps'."""


def main() -> None:
    """Distil if need be, draw, score, time; print and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=__doc__)
    parser.add_argument("--base", default="tiny", help="a base, or a run upon a subject")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a run that is distilled, or where to make one")
    parser.add_argument("--images", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--many", type=int, default=25, help="how many steps the base takes")
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 times nothing")
    parser.add_argument("--results", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value settings of the distilling, such as steps=1000")
    given = parser.parse_args()
    lines = [line.strip() for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not RunDir(given.run).adapter.is_file():
        taught = given.run.parent / f"{given.run.name}-prompts.txt"
        taught.parent.mkdir(parents=True, exist_ok=True)
        taught.write_text("\n".join(lines[::2]) + "\n", encoding="utf-8")
        settings = {"distill.prompts": str(taught), **parse_settings(given.settings)}
        distill(given.base, settings=settings, run=given.run, watch=Lines())
    folder = RunDir(given.run)
    recipe = load_recipe(folder.recipe)
    requests = requests_of(recipe, lines[1::2], given.images)
    arms = arms_of(recipe, given.many)
    folders, seconds = draw_arms(folder, recipe, arms, requests, given.rounds)
    print(json.dumps(found := {
        **about(), "base": recipe.base, "subject": recipe.pictures.token or None,
        "steps": {name: arm.num_inference_steps for name, arm in arms.items()},
        "trained": {"steps": recipe.steps, "batch": recipe.batch, "phases": getattr(recipe.objective, "phases", 1)},
        "prompts": len(lines[1::2]), "images_per_prompt": given.images,
        "scores": score(recipe, folder, folders), "seconds": seconds,
    }, indent=1))  # fmt: skip
    if given.results:
        given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def requests_of(recipe: Recipe, lines: Sequence[str], images: int) -> list[Request]:
    """Return the pictures to draw; a prompt's score is against its words without the token."""
    own, noun = recipe.pictures, recipe.pictures.class_noun or ""

    def filled(line: str, subject: str) -> str:
        return line.replace("{subject}", subject).replace("{class_noun}", noun)

    prompts = [(filled(line, own.subject), filled(line, noun)) for line in lines]
    return requests_for("subject", prompts, range(images))


def arms_of(recipe: Recipe, many: int) -> dict[str, Sampling]:
    """Return how each arm draws."""
    few = recipe.drawn_with
    base = recipe.generation.model_copy(update={"num_inference_steps": many})
    return {MANY: base, BASE_FEW: base.model_copy(update={"num_inference_steps": few.num_inference_steps}),
            BASE_CHEAP: few, FEW: few}  # fmt: skip


def draw_arms(
    folder: RunDir, recipe: Recipe, arms: dict[str, Sampling], requests: Sequence[Request], rounds: int
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Draw every arm's pictures into a folder of its own, and time them in turn; return the folders and the times."""
    folders: dict[str, Path] = {}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    base = what_draws(recipe.base, (), {"resolution": recipe.resolution, "device": recipe.device})
    with opened(Wanted(None, recipe, (), base.sampling, ()), Lines()) as ready:
        resolution_px = check_resolution(ready.family, recipe.resolution)
        subject = RunDir(folder.subject)
        held = [one for one in (subject.adapter, *subject.embeddings()) if one.is_file()]
        beneath = {ready.adapters.load(one, name=f"subject-{number}"): 1.0 for number, one in enumerate(held)}
        all_ = {**beneath, ready.adapters.load(folder.adapter, name="few"): 1.0}

        def switch(name: str) -> None:
            ready.adapters.set(all_ if name == FEW else beneath)
            ready.adapters.merge()

        for name, sampling in arms.items():
            switch(name)
            place = folder.path / "few-steps" / name.replace(",", "").replace("'", "").replace(" ", "-")
            made = draw(ready.family, requests, place, sampling=sampling, resolution_px=resolution_px,
                        about={"arm": name}, replace=True, progress=lambda done, total: None)  # fmt: skip
            folders[name] = made.parent
        for number in range(rounds):
            for name, sampling in arms.items():
                switch(name)
                begun = time.perf_counter()
                draw_batch(ready.family, [requests[number % len(requests)]], sampling, resolution_px, lambda step: None)
                taken[name].append(time.perf_counter() - begun)
        ready.adapters.set({})
    return folders, timed(taken) if rounds else {}


def timed(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median seconds of a picture, and how many times faster the few steps are: median and nine of ten."""
    ratios = np.array(taken[MANY]) / np.array(taken[FEW])
    low, median, high = (round(float(x), 2) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
    return {"median": {name: round(statistics.median(all_), 4) for name, all_ in taken.items()},
            "times_faster": {"median": median, "low": low, "high": high}}  # fmt: skip


def score(recipe: Recipe, run: RunDir, folders: dict[str, Path]) -> dict[str, Any]:
    """Return what each arm scores, what share of the many steps' that is, and how far the adapter is from the others.

    The distance as a set is told for each arm as it is; its differences are those of the pairs' shares.
    """
    encoders, _ = encoders_of(recipe.base)
    metrics = first_of(standard_metrics(encoders), [*QUESTIONS, "class_kd"])
    images = {name: read_images(folder) for name, folder in folders.items()}
    learned = sorted(RunDir(run.subject).pictures.glob("*.png")) if run.subject.is_dir() else []
    prompts = tuple(one.prompt_key for one in images[MANY])
    found: dict[str, Any] = {}
    for metric in metrics:
        kind = metric.question.kind
        if kind == "subject_fidelity" and not learned:
            continue
        encoder = next(one for one in encoders if one.name == metric.encoder)
        texts = [one.plain_prompt for one in images[MANY]] if kind == "prompt_following" else []
        seen = look(encoder, [*(one.path for some in images.values() for one in some), *learned], texts, batch=32,
                    progress=lambda done, of, what: None)  # fmt: skip
        many = seen.rows([one.path for one in images[MANY]])
        values: dict[str, np.ndarray] = {}
        for name, some in images.items():
            view = View(images=seen.rows([one.path for one in some]), base=many, prompt=prompts,
                        subject=seen.rows(learned), class_pictures=seen.rows(()),
                        text=seen.text_rows(texts) if texts else None)  # fmt: skip
            values[name] = metric.question.per_image(view).double().numpy()
        found[metric.key] = told(values, prompts, shares=kind in QUESTIONS)
    return found


def told(values: dict[str, np.ndarray], prompts: tuple[str, ...], *, shares: bool) -> dict[str, Any]:
    """Return the arms' means, their shares of the many steps' where asked for, and the adapter's differences."""
    found: dict[str, Any] = {"mean": {name: round(float(v.mean()), 4) for name, v in values.items()}}
    if shares:
        found["share"] = {name: share(values[name], values[MANY], prompts) for name in ARMS if name != MANY}
    differences = {name: interval(values[FEW] - values[name], prompts, seed=0)
                   for name in (BASE_FEW, BASE_CHEAP)}  # fmt: skip
    found["adapter's minus"] = {
        name: {"difference": round(one.mean, 4), "low": round(one.low or 0, 4), "high": round(one.high or 0, 4)}
        for name, one in differences.items()
    }
    return found


def share(values: np.ndarray, of: np.ndarray, prompts: tuple[str, ...]) -> dict[str, float]:
    """Return a ratio of means and its 95 % interval over prompts (percentile bootstrap)."""
    keys = list(dict.fromkeys(prompts))
    one, other = (np.array([v[[p == key for p in prompts]].mean() for key in keys]) for v in (values, of))
    drawn = np.random.default_rng(0).integers(0, len(keys), (DRAWS, len(keys)))
    low, high = np.quantile(one[drawn].mean(1) / other[drawn].mean(1), (0.025, 0.975))
    return {name: round(float(x), 3) for name, x in
            (("share", one.mean() / other.mean()), ("low", low), ("high", high))}  # fmt: skip


if __name__ == "__main__":
    main()
