"""The same prompts at several strengths and numbers of steps: from the base to what was trained, and beyond."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.adapters.adapter import Attached
from limner.adapters.textual_inversion import LearnedWords
from limner.families.family import Family
from limner.files import remove
from limner.generate.draw import Request, Sampling, draw
from limner.metrics.ladder import BASE, BOTH, FEW_STEPS, SUBJECT, Place
from limner.recipe import Recipe
from limner.rundir import RunDir
from limner.watch import Watch


def places_of(recipe: Recipe, *, has_strength: bool) -> tuple[list[Place], list[Place]]:
    """Return where to draw: the base's numbers of steps (strength 0), and what was trained at its strengths and steps.

    None where none is asked. Of a few-step run they are models: the base, the few-step adapter, the subject beneath it,
    and both. A whole model and a learned word have no strength: they are there (1) or not (0).
    """
    asked = recipe.evaluation
    if recipe.learns_few_steps:
        steps = asked.inference_steps
        arms = (FEW_STEPS, SUBJECT, BOTH) if recipe.distill.adapter else (FEW_STEPS,)
        return ([Place(strength=0.0, steps=n, arm=BASE) for n in steps],
                [Place(strength=1.0, steps=n, arm=arm) for arm in arms for n in steps])  # fmt: skip
    if not (asked.strengths or asked.inference_steps):
        return [], []
    strengths = asked.strengths if asked.strengths and has_strength else (1.0,)
    steps = asked.inference_steps or (recipe.generation.num_inference_steps,)
    return [Place(strength=0.0, steps=n) for n in steps], [Place(strength=s, steps=n) for s in strengths for n in steps]


@dataclass(frozen=True)
class Acting:
    """What draws beside the base, and how it is set for a place."""

    own: Sequence[Attached] = ()
    """What was trained."""
    beneath: Sequence[Attached] = ()
    """The subject that a few-step adapter was learned upon."""
    few_steps: Sampling | None = None
    """How a few-step adapter is drawn with."""

    def sampling(self, place: Place, usual: Sampling) -> Sampling:
        """Return how to draw at a place."""
        own = self.few_steps if self.few_steps and place.arm in (FEW_STEPS, BOTH) else usual
        return own.model_copy(update={"num_inference_steps": place.steps})

    def set(self, place: Place) -> None:
        """Set every adapter for a place."""
        _set_strength(self.own, place.strength if not place.arm else float(place.arm in (FEW_STEPS, BOTH)))
        _set_strength(self.beneath, float(place.arm in ("", SUBJECT, BOTH)))


def draw_places(
    family: Family, acting: Acting, places: Sequence[Place], requests: Sequence[Request], out: Path,
    watch: Watch, *, sampling: Sampling, about: dict[str, Any], **more: Any,
) -> dict[Place, Path]:  # fmt: skip
    """Draw the first picture of each of the subject's prompts at each place, into folders in `out` that bear its name.

    At the end all adapters' strength is 1 again. `sampling` is how the base draws, `more` what `draw` takes.
    """
    first = [request for request in requests if request.set == "subject" and request.image_index == 0]
    drawn = {place: out / place.name for place in places}
    with watch.phase("draw strengths and steps") if places else nullcontext():
        done, total = 0, sum(place.steps for place in places) * len(first)
        for place, folder in drawn.items():

            def tick(now: int, _of: int, *, before: int = done) -> None:
                watch.progress(before + now, total)

            acting.set(place)
            told = {**about, "strength": place.strength, **({"ladder_arm": place.arm} if place.arm else {})}
            draw(family, first, folder, sampling=acting.sampling(place, sampling), about=told, progress=tick, **more)
            done += place.steps * len(first)
    for adapters in (acting.own, acting.beneath):
        _set_strength(adapters, 1.0)
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
