"""Validations: pictures drawn between steps, judged, and kept with their scores, to tell which step is the best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from limner.drawing import draw_between, draw_untaught, draw_untouched
from limner.errors import UserError
from limner.evaluate.course import Judges, until
from limner.evaluate.encoders import encoders_of
from limner.evaluate.knee import places_of
from limner.families.family import Family
from limner.generate.draw import check_resolution
from limner.generate.faults import tell_faults
from limner.metrics.course import Course
from limner.metrics.scores import read_written
from limner.recipe import Recipe
from limner.rundir import RunDir, write_json
from limner.seeds import seed_of
from limner.telling import Telling
from limner.train.loop import Training
from limner.watch import Watch


def due(step: int, every: int) -> bool:
    """Tell whether something that is done every so many steps is done at this one; 0 is never."""
    return every > 0 and step % every == 0


def read_course(folder: RunDir) -> Course | None:
    """Return what the validations of a run found; None where it had none."""
    return read_written(Course, folder.course, "Train again.") if folder.course.is_file() else None


class SharedEncoders:
    """The encoders that judge, loaded once for runs that train together, as long as one of them has use for them."""

    _loaded: ClassVar[WeakValueDictionary[tuple[str, ...], SharedEncoders]] = WeakValueDictionary()

    def __init__(self, base: str, names: Sequence[str]) -> None:
        self.encoders, _ = encoders_of(base, names)

    @staticmethod
    def of(base: str, names: Sequence[str]) -> SharedEncoders:
        """Return those of a base, or those that are named."""
        there = SharedEncoders._loaded.get(key := (base, *names))
        if there is None:
            SharedEncoders._loaded[key] = there = SharedEncoders(base, names)
        return there


class Validations:
    """The validations of one training; of several processes the first draws and judges, the others wait for it.

    Nothing that the training draws is touched: pictures have generators of their own, and judges compute on the CPU.
    """

    def __init__(
        self, folder: RunDir, recipe: Recipe, family: Family, training: Training, telling: Telling, watch: Watch
    ) -> None:
        self._folder, self._recipe, self._family = folder, recipe, family
        self._training, self._telling, self._watch = training, telling, watch
        self._own = recipe.validation
        self._requests = recipe.validation_requests
        self._shared: SharedEncoders | None = None
        self._judges: Judges | None = None
        self._course: Course | None = None
        if self._own.every_steps and folder.writes:
            self._course = self._known()

    @property
    def kept(self) -> int | None:
        """Return the step whose checkpoint has to stay; None where the evidence does not choose, or not yet."""
        knee = self._course.knee if self._course and self._recipe.checkpoint.choose == "evidence" else None
        return knee.held or None if knee else None

    def catch_up(self) -> bool:
        """Judge the base, and the step that a resumed run goes on from, unless they are; return whether to end."""
        if self._folder.writes and self._own.every_steps:
            if self._course is None:
                self._judge(0)
            if self._training.index and self._is_due():
                self._judge(self._training.index)
        return self._is_over()

    def take(self) -> bool:
        """Judge the step in hand if it is due; return whether the run is to end."""
        if not self._is_due():
            return False
        if self._folder.writes:
            self._judge(self._training.index)
        return self._is_over()

    def _is_due(self) -> bool:
        step, every = self._training.index, self._own.every_steps
        return due(step, every) or (every > 0 and step == self._training.steps)

    def _is_over(self) -> bool:
        """Return whether nothing was gained for long enough while what was there is being lost; say it, if so."""
        if not self._own.patience:
            return False
        knee, step = self._course.knee if self._course else None, self._training.index
        is_over = bool(knee and knee.is_conclusive and knee.is_forgetting and knee.waited >= self._own.patience)
        is_over = self._training.ranks.any(is_over) and step < self._training.steps
        if is_over and knee:
            self._folder.append_log("stopped", step=step, text=f"validation.patience: {knee.words}")
            self._watch.say(
                f"ends at step {step} of {self._training.steps}, because of validation.patience. To go on all the "
                f"same: limner train --resume {self._folder.path} validation.patience=0"
            )
        return is_over

    def _judge(self, step: int) -> None:
        """Draw and judge what a step makes of the prompts, 0 for the base; what fails is told, and the run goes on."""
        if self._course and step in self._course.steps:
            return
        try:
            self._course = self._judged(step)
            write_json(self._folder.course, self._course.model_dump(mode="json"))
        except Exception as error:  # whatever it is, a validation is not worth the run
            what = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._telling.warn(step, f"validation at step {step} failed ({what}); training goes on")
            return
        means = {curve.kind: curve.scores[step].mean for curve in self._course.curves}
        self._folder.append_log("judged", step=step, scores=means)
        said = ", ".join(f"{kind.replace('_', ' ')} {mean:.{places_of(mean)}f}" for kind, mean in means.items())
        self._watch.say(f"{f'step {step}' if step else 'the base'}: {said}")

    def _judged(self, step: int) -> Course:
        out, training = self._folder.validation, self._training
        drawn = (self._requests, self._recipe, self._family)
        with training.evaluating() if step else training.adapter.disabled():
            made = draw_between(out, *drawn, step) if step else draw_untouched(out, *drawn)
        if wrong := tell_faults(made, f"validation at step {step}", tuned=True):
            self._telling.warn(step, wrong)
        if self._judges is None:
            self._shared = SharedEncoders.of(self._recipe.base, self._recipe.evaluation.encoders)
            few: dict[str, Path] = {}
            if self._recipe.learns_few_steps:
                with training.adapter.disabled():
                    few = draw_untaught(self._folder, *drawn)
            self._judges = Judges(self._shared.encoders, self._folder, out / "step-000000", untaught=few)
        return self._judges.judge(made.parent, step, self._course, key=self._key())

    def _known(self) -> Course | None:
        """Return what was found before this run was stopped, up to the step that it goes on from."""
        known = read_course(self._folder)
        is_same = known is not None and known.key == self._key()
        return until(known, self._training.index) if known and is_same else None

    def _key(self) -> str:
        """Return a hash of what decides a step's scores beside its weights."""
        recipe, family = self._recipe, self._family
        about = [
            *family.identity.values(), *(family.begun_by.identity.values() if family.begun_by else ()),
            json.dumps([asdict(request) for request in self._requests]), recipe.generation.alone().model_dump_json(),
            str(check_resolution(family, recipe.resolution)), json.dumps(recipe.evaluation.encoders),
            str(recipe.evaluation.pictures), *((recipe.drawn_with.model_dump_json(),) if recipe.few_steps else ()),
        ]  # fmt: skip
        return f"{seed_of(*about):016x}"
