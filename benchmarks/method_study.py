"""LoRA, DreamBooth, both together and Textual Inversion on the embedded base: six subjects, three training seeds each.

`python -m benchmarks.method_study RUN [--seeds N] [--to FOLDER]`

It lays the demo's six subjects and one recipe for each arm into the folder RUN and starts `limner compare` on them,
which trains what is not trained yet, draws, scores, and writes `RUN/study/study.html`; stopped at any moment, the same
command goes on. With `--to` the page, its numbers and the recipes are copied to a folder.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import limner
from limner.families.source import ASSETS
from limner.recipe import load_recipe
from limner.recipe.reading import save_recipe
from limner.terminal import watch_for

SUBJECTS = {
    "sks critter": "critter", "qwz critter": "critter_cyan", "ohwx robot": "robot", "xhn robot": "robot_gray",
    "zwx plant": "plant", "vbx clay figure": "clay_figure",
}  # fmt: skip
"""Token and class noun, and the folder of its pictures among the demo's."""

SHARED: dict[str, Any] = {
    "prior.weight": 1.0,
    "generation.num_inference_steps": 12,
    "evaluation.class_prompts": [
        "a photo of a {class_noun}",
        "a photo of a red {class_noun}",
        "a photo of a green {class_noun} on a pink background",
        "a picture of a cyan {class_noun} on a white background",
        "a drawing of a yellow {class_noun}",
        "a photo of a white {class_noun} on a red background",
    ],
    "evaluation.images_per_class_prompt": 6,
    "evaluation.strengths": [0.5, 1.0, 1.5],
}
"""What all arms have beside the demo's recipe: class prompts that fit every subject, enough images, strengths."""

WITHOUT_PRIOR: dict[str, Any] = {"prior.enabled": False}
FULL: dict[str, Any] = {"adapter.kind": "full", "learning_rate": 3e-4}
WORDS: dict[str, Any] = {
    "adapter.kind": "textual_inversion", "adapter.vectors": 4, "learning_rate": 3e-2, "pictures.token": "<subject>",
    "pictures.caption": "a photo of a {token}", "optimizer.weight_decay": 0.0, "optimizer.warmup_steps": 0,
    "pictures.templates": ["a picture of a {token}", "a rendering of a {token}", "a drawing of a {token}"],
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "lora": WITHOUT_PRIOR,
    "dreambooth": FULL,
    "dreambooth-lora": {},
    "textual-inversion": {**WITHOUT_PRIOR, **WORDS},
    "dreambooth-no-prior": {**FULL, **WITHOUT_PRIOR},
}
"""The arms as settings over the demo's recipe: all take its 150 steps of 4 pictures."""


def main() -> None:
    """Parse the command line, lay out subjects and recipes, compare, copy the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method_study", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds for each subject")
    parser.add_argument("--to", type=Path, help="copy page, numbers and recipes there")
    given = parser.parse_args()
    for name, pictures in SUBJECTS.items():
        shutil.copytree(ASSETS / "demo" / pictures, given.run / "subjects" / name, dirs_exist_ok=True)
    recipes = given.run / "recipes"
    recipes.mkdir(exist_ok=True)
    for arm, own in ARMS.items():
        save_recipe(load_recipe("demo", {**SHARED, **own}), recipes / f"{arm}.toml")
    arms = ",".join(["base", *(str(recipes / f"{arm}.toml") for arm in ARMS)])
    with watch_for(silent=False) as watch:
        page = limner.compare(
            subjects=given.run / "subjects",
            arms=arms,
            seeds=tuple(range(given.seeds)),
            run=given.run / "study",
            watch=watch,
        )
    if given.to:
        given.to.mkdir(parents=True, exist_ok=True)
        for one in (page, page.with_suffix(".json"), *recipes.iterdir()):
            shutil.copy(one, given.to)
    print(page)


if __name__ == "__main__":
    main()
