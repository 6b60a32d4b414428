"""The same prompts at several strengths and numbers of steps: from the base to what was trained, and beyond."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from limner.adapters.adapter import Attached
from limner.adapters.textual_inversion import LearnedWords
from limner.families.family import Family
from limner.files import remove
from limner.generate.draw import Request, Sampling, draw
from limner.metrics.ladder import Place
from limner.recipe import Recipe
from limner.rundir import RunDir
from limner.watch import Watch


def places_of(recipe: Recipe, *, has_strength: bool) -> tuple[list[Place], list[Place]]:
    """Return where to draw: the base's numbers of steps (strength 0), and what was trained at its strengths and steps.

    None where none is asked. A whole model and a learned word have no strength: they are there (1) or not (0).
    """
    asked = recipe.evaluation
    if not (asked.strengths or asked.inference_steps):
        return [], []
    strengths = asked.strengths if asked.strengths and has_strength else (1.0,)
    steps = asked.inference_steps or (recipe.generation.num_inference_steps,)
    return [Place(strength=0.0, steps=n) for n in steps], [Place(strength=s, steps=n) for s in strengths for n in steps]


def draw_places(
    family: Family, attached: Sequence[Attached], places: Sequence[Place], requests: Sequence[Request], out: Path,
    watch: Watch, *, sampling: Sampling, about: dict[str, Any], **more: Any,
) -> dict[Place, Path]:  # fmt: skip
    """Draw the first picture of each of the subject's prompts at each place, into folders in `out` that bear its name.

    At the end the adapters' strength is 1 again. `more` is what `draw` takes.
    """
    first = [request for request in requests if request.set == "subject" and request.image_index == 0]
    drawn = {place: out / place.name for place in places}
    with watch.phase("draw strengths and steps") if places else nullcontext():
        done, total = 0, sum(place.steps for place in places) * len(first)
        for place, folder in drawn.items():

            def tick(now: int, _of: int, *, before: int = done) -> None:
                watch.progress(before + now, total)

            own = sampling.model_copy(update={"num_inference_steps": place.steps})
            _set_strength(attached, place.strength)
            draw(family, first, folder, sampling=own, about={**about, "strength": place.strength}, progress=tick,
                 **more)  # fmt: skip
            done += place.steps * len(first)
    _set_strength(attached, 1.0)
    return drawn


def drop_others(folder: RunDir, places: Iterable[Place]) -> None:
    """Remove pictures of places that are no longer asked for."""
    wanted = {place.name for place in places}
    for found in folder.ladder.glob("*"):
        if found.name not in wanted:
            remove(found)


def _set_strength(attached: Sequence[Attached], strength: float) -> None:
    for adapter in attached:
        adapter.set_strength(float(bool(strength)) if isinstance(adapter, LearnedWords) else strength)
