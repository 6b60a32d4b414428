"""Many subjects at once: a folder of folders becomes a run for each, trained together on one base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from limner import machine
from limner.adapters.lora import LoRA
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.arms import Arm, Subject, subjects_of
from limner.board import Board
from limner.conflicts import check_settings
from limner.errors import Guarded, Interrupted, UserError
from limner.files import remove
from limner.fitting import make_fit, plan_memory, slots_that_fit, telling_memory
from limner.lock import locked
from limner.pictures.folder import find_pictures
from limner.planning import Told, length_of
from limner.prepare.check import Checked
from limner.prepare.subjects import refuse_colliding_tokens, refuse_shared_pictures
from limner.ranks import Ranks, started
from limner.recipe import Recipe, changed, load_recipe, save_recipe, shipped_recipes
from limner.resuming import check_recipe, refuse_finished
from limner.run import check, write_down
from limner.rundir import RunDir, read_json, write_json
from limner.training_together import Ended, Waiting, train_together
from limner.watch import Watch

LIST = "subjects.json"
"""In the folder that holds the runs: their names in order, and how many train at a time."""
SLOTS = 8
"""At most so many train at a time where `slots` is not given."""
BY_FOLDER = {
    "pictures.token": "Each folder's name gives it: 'sks dog' has the token sks.",
    "pictures.subjects": "It teaches one adapter several subjects; --subjects trains one for each.",
}
"""Settings that --subjects has no use for, and why."""


@dataclass(frozen=True)
class Many:
    """What has become of runs that trained together."""

    path: Path
    """The folder that holds them."""
    ended: tuple[Ended, ...]

    def require_all(self) -> None:
        """Say of each run that has not come to its end why.

        Raises:
            Interrupted, Guarded, UserError: by what was the worst; a bug is raised as it is.
        """
        wrong = {one.name: one.error for one in self.ended if one.error}
        for error in wrong.values():
            if not isinstance(error, UserError):
                raise error
        if not wrong:
            return
        kinds = [type(error) for error in wrong.values()]
        kind = next((kind for kind in (Interrupted, Guarded) if kind in kinds), UserError)
        lines = "".join(f"\n  {name}: {' '.join(str(error).split())}" for name, error in wrong.items())
        finished = len(self.ended) - len(wrong)
        hint = f"{finished} finished. The others go on with: limner train --resume {self.path}"
        raise kind(f"{len(wrong)} of {len(self.ended)} subjects have not come to their end:{lines}\n", hint)


def train_many(
    subjects: str | Path,
    *,
    recipe: str | Path = "lora",
    settings: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    watch: Watch | None = None,
) -> Many:
    """Train an adapter for each sub-folder of `subjects`, all on one base at once; each has a run of its own in `run`.

    A sub-folder is named after its token and class, such as "sks dog". `settings` go to every run, but for `slots`: how
    many train at a time. What goes wrong with one subject is in the result (`Many.require_all` raises it), and the
    others train on.

    Raises:
        UserError: something that the user can mend, and that concerns all.
    """
    watch = watch or Watch()
    _require_one_process()
    looked = _look(Path(subjects), recipe, settings or {}, watch)
    board, ended = looked.board, looked.ended
    with _computing(looked.largest[0], watch):
        slots = looked.slots or slots_that_fit(*looked.largest, min(SLOTS, len(looked.checked)))
        parent = RunDir.create(Path(run) if run else None, name=f"{Path(recipe).stem}-{Path(subjects).resolve().name}")
        with locked(parent.path):
            try:
                waiting = _write_down_all(parent.path, looked, slots, watch)
                write_json(parent.path / LIST, {"subjects": [one.name for one in waiting], "slots": slots})
                return _train(parent.path, waiting, ended, list(looked.recipes), slots, watch, board)
            except UserError:
                if not any(parent.path.glob("*/checkpoints")):  # nothing was learned: leave nothing half-made
                    remove(parent.path)
                raise


def plan_many(
    subjects: str | Path,
    *,
    recipe: str | Path = "lora",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Told:
    """Return what `train_many` would need, phase by phase, before anything is loaded: one base and its slots.

    The phases are those of the subject whose steps are the largest; the time is that of all.
    """
    watch = watch or Watch()
    looked = _look(Path(subjects), recipe, settings or {}, watch)
    (largest, checked), count = looked.largest, len(looked.checked)
    slots = min(looked.slots or SLOTS, count)
    every = sum(length_of(looked.recipes[name], found).steps for name, found in looked.checked.items())
    length = length_of(largest, checked)
    with watch.phase("plan"):
        together = plan_memory(largest, checked, replace(length, steps=ceil(every / slots)), slots=slots)
        alone = plan_memory(largest, checked, length) if slots > 1 else together
    taken, single = (next(row for row in told.facts["phases"] if row["phase"] == "train") for told in (together, alone))
    each = (taken["memory_gib"] - single["memory_gib"]) / max(1, slots - 1)
    disk = count * together.facts["disk_gib"]
    lines = [
        f"{count} subjects, {slots} at a time, {every} steps in all; the disk is that of each, {disk:.2f} GiB of all",
        f"training takes {single['memory_gib']:.2f} GiB with one slot and {taken['memory_gib']:.2f} GiB with {slots}: "
        f"{each:.3f} GiB for each further one",
    ]
    facts = {**together.facts, "subjects": count, "slots": slots, "all_steps": every, "slot_gib": each,
             "alone_gib": single["memory_gib"], "disk_gib": disk}  # fmt: skip
    return Told((*together.lines, *lines), facts)


def resume_many(run: str | Path, *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None) -> Many:
    """Continue all runs of a folder that `train_many` made, each from its newest checkpoint; finished ones stay.

    `settings` may change what they may for one run, and `slots`.
    """
    watch, shared, parent = watch or Watch(), dict(settings or {}), Path(run)
    _require_one_process()
    known = read_json(parent / LIST)
    slots = _take_slots(shared) or known["slots"]
    accepted = shared.pop("accept_dataset_change", False) is True
    board = Board(watch, known["subjects"])
    waiting: list[Waiting] = []
    ended: dict[str, Ended] = {}
    finished: dict[str, Ended] = {}
    with locked(parent):
        for name in known["subjects"]:
            try:
                one = _reopened(parent / name, shared, board.watch_of(name), accepted)
                if one:
                    waiting.append(one)
                else:
                    finished[name] = Ended(name, RunDir(parent / name))
            except UserError as error:
                ended[name] = Ended(name, RunDir(parent / name), error)
        if not waiting and ended:
            raise next(one.error for one in ended.values() if one.error)
        if not waiting:
            raise UserError(f"{parent}: all {len(finished)} subjects are finished.",
                            "To go on with them: limner train --resume DIR steps=N")  # fmt: skip
        with _computing(waiting[0].recipe, watch):
            return _train(parent, waiting, {**finished, **ended}, known["subjects"], slots, watch, board)


def is_many(folder: Path) -> bool:
    """Tell whether a folder holds runs that `train_many` made."""
    return (folder / LIST).is_file()


def _train(
    parent: Path,
    waiting: Sequence[Waiting],
    ended: Mapping[str, Ended],
    names: Sequence[str],
    slots: int,
    watch: Watch,
    board: Board,
) -> Many:
    """Train those who wait, and put together how all have ended."""
    watch.say(f"{len(waiting)} subjects, {min(slots, len(waiting))} at a time, on one base")
    with ExitStack() as held, telling_memory(waiting[0].recipe, waiting[0].checked):
        for one in waiting:
            held.enter_context(locked(one.folder.path))
        trained = train_together(waiting, slots=slots, watch=watch, board=board)
    by_name = {**ended, **{one.name: one for one in trained}}
    return Many(parent, tuple(by_name[name] for name in names))


def _reopened(path: Path, shared: Mapping[str, Any], watch: Watch, accepted: bool) -> Waiting | None:
    """Return a run that is to go on; None where it is finished."""
    folder = RunDir.open(path)
    recipe = load_recipe(folder.recipe, shared)
    check_recipe(folder, recipe)
    check_settings(recipe, given=shared)
    known = read_json(folder.provenance)
    checked = check([Path(p) for p in known["pictures"]], recipe=recipe, watch=watch)
    try:
        refuse_finished(folder, recipe, length_of(recipe, checked).steps)
    except UserError:
        return None
    save_recipe(recipe, folder.recipe)
    return Waiting(path.name, folder, recipe, checked, accept_dataset_change=accepted)


@dataclass(frozen=True)
class _Looked:
    """Subjects that were looked at, before anything is loaded."""

    people: Sequence[Subject]
    recipes: Mapping[str, Recipe]
    checked: Mapping[str, Checked]
    """Those that can be trained."""
    ended: Mapping[str, Ended]
    """Those that are left out."""
    slots: int | None
    """How many are to train at a time, where that was given."""
    board: Board

    @property
    def largest(self) -> tuple[Recipe, Checked]:
        """Return the recipe and the pictures of the subject whose steps need most memory."""
        name = max(self.checked, key=lambda name: max(w * h for w, h in self.checked[name].shapes))
        return self.recipes[name], self.checked[name]


def _look(folder: Path, recipe: str | Path, settings: Mapping[str, Any], watch: Watch) -> _Looked:
    """Check settings, names and pictures of all subjects.

    Raises:
        UserError: something that concerns all of them.
    """
    shared = dict(settings)
    slots = _take_slots(shared)
    for key, why in BY_FOLDER.items():
        if key in shared:
            raise UserError(f"{key}: has no effect with --subjects. {why}", "Leave it out.")
    people = subjects_of([], folder)
    refuse_colliding_tokens([one.name for one in people])
    recipes = {one.name: _recipe_for(one, recipe, shared, watch) for one in people}
    first = recipes[people[0].name]
    for line in check_settings(first, given=shared, own_file=str(recipe) not in shipped_recipes()):
        watch.say(line)
    for one in people:
        find_pictures(list(one.pictures))  # an empty folder is a mistake of the whole, not a bad picture
    board = Board(watch, list(recipes))
    checked, ended = _check_all(people, recipes, board)
    return _Looked(people, recipes, checked, ended, slots, board)


def _recipe_for(subject: Subject, recipe: str | Path, shared: Mapping[str, Any], watch: Watch) -> Recipe:
    """Return the recipe of one subject: token and class noun by its name; a word that is learned stands in brackets."""
    general = load_recipe(recipe, shared)
    if not isinstance(general.adapter, LoRA | TextualInversion | Pivotal):
        raise UserError(
            f"adapter.kind={general.adapter.kind}: is trained one subject at a time.",
            "Use lora, textual_inversion or pivotal, or train each folder by itself.",
        )
    if general.objective.kind == "consistency":
        raise UserError("objective.kind=consistency: teaches few steps, which belong to a base and not to a subject.",
                        "Train each folder by itself, or distill the base once: limner distill BASE")  # fmt: skip
    own = subject.settings(Arm(str(recipe)), shared)
    if isinstance(general.adapter, TextualInversion | Pivotal):
        token = subject.name.split()[0]
        own["pictures.token"] = token if token.startswith("<") else f"<{token}>"
        watch.say(f"{subject.name}: the word that is learned is {own['pictures.token']}")
    return load_recipe(recipe, own)


def _check_all(
    people: Sequence[Subject], recipes: Mapping[str, Recipe], board: Board
) -> tuple[dict[str, Checked], dict[str, Ended]]:
    """Check every subject's pictures; one whose pictures cannot be used is left out, and said at the end.

    Raises:
        UserError: no subject is left, or two have the same picture.
    """
    checked: dict[str, Checked] = {}
    ended: dict[str, Ended] = {}
    for one in people:
        watch = board.watch_of(one.name)
        try:
            with watch.phase("check"):
                checked[one.name] = check(list(one.pictures), recipe=recipes[one.name], watch=_Lines(watch))
        except UserError as error:
            ended[one.name] = Ended(one.name, None, error)
            watch.say(f"is left out: {error}")
    if not checked:
        name, first = next(iter(ended.items()))
        assert isinstance(first.error, UserError), "only these are kept"
        raise UserError(f"{name}: {first.error.message}", first.error.hint)
    every = [(name, example) for name, found in checked.items() for example in found.examples]
    likeness = {f"{name}/{example.name}": example.likeness for name, example in every}
    refuse_shared_pictures(likeness, {f"{name}/{example.name}": name for name, example in every})
    return checked, ended


def _write_down_all(parent: Path, looked: _Looked, slots: int, watch: Watch) -> list[Waiting]:
    """Make every subject's run folder, before anything is loaded; what `fit` takes is the same for all."""
    together = min(slots, len(looked.checked))
    _, fitted = make_fit(*looked.largest, watch, Ranks(), slots=together)
    waiting: list[Waiting] = []
    for one in looked.people:
        if one.name in looked.checked:
            recipe = changed(looked.recipes[one.name], {**fitted, "fit": False}) if fitted else looked.recipes[one.name]
            folder = RunDir.create(parent / one.name, name=one.name)
            write_down(folder, recipe, one.pictures, None, fitted=fitted)
            waiting.append(Waiting(one.name, folder, recipe, looked.checked[one.name]))
    return waiting


def _take_slots(shared: dict[str, Any]) -> int | None:
    """Take `slots` out of the settings; None where it is not given."""
    slots = shared.pop("slots", None)
    if slots is None:
        return None
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        raise UserError(f"slots={slots}: is no number of runs.", f"Use 1 or more; {SLOTS} is usual.")
    return slots


def _require_one_process() -> None:
    if started().count > 1:
        raise UserError("train --subjects: runs in one process.", "Start it without torchrun.")


@contextmanager
def _computing(recipe: Recipe, watch: Watch) -> Iterator[None]:
    """Compute as the recipe asks for within this block; refuses a device that is not there."""
    at = machine.place(recipe.device, recipe.precision)
    if recipe.deterministic and at.device.type == "cuda":
        watch.say("deterministic: attention uses the math kernel (slower)")
    with machine.deterministic(at.device) if recipe.deterministic else nullcontext():
        yield


class _Lines(Watch):
    """Passes on lines alone."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def say(self, text: str) -> None:
        self._watch.say(text)
