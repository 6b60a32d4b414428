"""What few steps keep of many, and how much faster they are: `python -m benchmarks.few_steps --prompts FILE --run RUN`.

FILE has a prompt a line. The base draws the odd lines to teach a few-step adapter (or --run names a run that has been
distilled), and the even ones, which it has never seen, are drawn by three arms from the same noise: the base in many
steps with guidance, the base in few, and the adapter in few. Scored is how well they show what the prompt says, by the
base's own judge; the shares have 95 % intervals over prompts. Times are taken in turn, a picture of each arm a round.
Of a run upon a subject `limner evaluate` with `evaluation.inference_steps` says the same of its likeness.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from limner.distilling import distill
from limner.evaluate.encoders import encoders_of
from limner.evaluate.images import read_images
from limner.evaluate.look import look
from limner.generate.draw import Request, Sampling, check_resolution, draw, draw_batch, requests_for
from limner.metrics.metric import View
from limner.metrics.standard import first_of, standard_metrics
from limner.opening import opened, what_draws
from limner.recipe import parse_settings
from limner.rundir import RunDir
from limner.terminal import Lines

MANY, BASE_FEW, FEW = "base, many steps", "base, few steps", "adapter, few steps"
DRAWS = 10_000


def main() -> None:
    """Distil if need be, draw, score, time; print and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=__doc__)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a run that is distilled, or where to make one")
    parser.add_argument("--images", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=4, help="how few")
    parser.add_argument("--many", type=int, default=25, help="how many the base takes")
    parser.add_argument("--rounds", type=int, default=20, help="of timing; 0 times nothing")
    parser.add_argument("--results", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value settings of the distilling, such as steps=1000")
    given = parser.parse_args()
    lines = [line.strip() for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    taught, asked = lines[::2], lines[1::2]
    if not RunDir(given.run).adapter.is_file():
        own = given.run.parent / f"{given.run.name}-prompts.txt"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text("\n".join(taught) + "\n", encoding="utf-8")
        settings = {"distill.prompts": str(own), **parse_settings(given.settings)}
        distill(given.base, settings=settings, run=given.run, watch=Lines())
    wanted = what_draws(given.run, (), None)
    usual = wanted.recipe.generation.model_copy(update={"num_inference_steps": given.many})
    arms = {
        MANY: usual, BASE_FEW: usual.model_copy(update={"num_inference_steps": given.steps}),
        FEW: wanted.sampling.model_copy(update={"num_inference_steps": given.steps}),
    }  # fmt: skip
    requests = requests_for("subject", [(prompt, prompt) for prompt in asked], range(given.images))
    folders, seconds = draw_arms(wanted, arms, requests, given.run / "few-steps", given.rounds)
    found = {
        "base": given.base, "steps": {"few": given.steps, "many": given.many}, "prompts": len(asked),
        "images_per_prompt": given.images, "trained_steps": wanted.recipe.steps, "score": score(given.base, folders),
        "seconds": seconds, "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": "python -m benchmarks.few_steps",
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if given.results:
        given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def draw_arms(
    wanted: Any, arms: dict[str, Sampling], requests: Sequence[Request], out: Path, rounds: int
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Draw every arm's pictures into a folder of its own, and time them in turn; return the folders and the times."""
    folders: dict[str, Path] = {}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    with opened(wanted, Lines()) as ready:
        own, resolution_px = ready.adapters.active, check_resolution(ready.family, wanted.recipe.resolution)

        def switch(name: str) -> None:
            ready.adapters.set(own if name == FEW else {})

        for name, sampling in arms.items():
            switch(name)
            folders[name] = draw(ready.family, requests, out / name.replace(", ", "-").replace(" ", "-"),
                                 sampling=sampling, resolution_px=resolution_px, about={"arm": name}, replace=True,
                                 progress=lambda done, total: None).parent  # fmt: skip
        for number in range(rounds):
            for name, sampling in arms.items():
                switch(name)
                begun = time.perf_counter()
                draw_batch(ready.family, [requests[number % len(requests)]], sampling, resolution_px, lambda step: None)
                taken[name].append(time.perf_counter() - begun)
    return folders, timed(taken) if rounds else {}


def timed(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median seconds of a picture, and how many times faster the few steps are: median and nine of ten."""
    ratios = np.array(taken[MANY]) / np.array(taken[FEW])
    low, median, high = (round(float(x), 2) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
    return {"median": {name: round(statistics.median(all_), 4) for name, all_ in taken.items()},
            "times_faster": {"median": median, "low": low, "high": high}}  # fmt: skip


def score(base: str, folders: dict[str, Path]) -> dict[str, Any]:
    """Return each arm's score, and what share of the many steps' the others have, with intervals over prompts."""
    encoders, _ = encoders_of(base)
    (metric,) = first_of(standard_metrics(encoders), ["prompt_following"])
    encoder = next(one for one in encoders if one.name == metric.encoder)
    images = {name: read_images(folder) for name, folder in folders.items()}
    rows = images[MANY]
    seen = look(encoder, [one.path for some in images.values() for one in some], [one.plain_prompt for one in rows],
                batch=32, progress=lambda done, of, what: None)  # fmt: skip
    names = tuple(one.prompt_key for one in rows)
    values: dict[str, np.ndarray] = {}
    for name, some in images.items():
        own = seen.rows([one.path for one in some])
        view = View(images=own, base=own, prompt=names, subject=seen.rows(()), class_pictures=seen.rows(()),
                    text=seen.text_rows([one.plain_prompt for one in some]))  # fmt: skip
        values[name] = metric.question.per_image(view).double().numpy()
    by_prompt = {name: np.array([v[[n == key for n in names]].mean() for key in dict.fromkeys(names)])
                 for name, v in values.items()}  # fmt: skip
    drawn = np.random.default_rng(0).integers(0, len(by_prompt[MANY]), (DRAWS, len(by_prompt[MANY])))
    found: dict[str, Any] = {"metric": metric.key, "mean": {n: round(float(v.mean()), 4) for n, v in by_prompt.items()}}
    for name in (BASE_FEW, FEW):
        shares = by_prompt[name][drawn].mean(1) / by_prompt[MANY][drawn].mean(1)
        low, high = (round(float(x), 3) for x in np.quantile(shares, (0.025, 0.975)))
        whole = round(float(by_prompt[name].mean() / by_prompt[MANY].mean()), 3)
        found[f"share of {name}"] = {"share": whole, "low": low, "high": high}
    return found


if __name__ == "__main__":
    main()
