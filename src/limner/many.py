"""Many at once: every subject of a folder, or row of a table, becomes a run, and all train together on one base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from limner import machine
from limner.board import Board
from limner.conflicts import check_settings
from limner.entrants import SLOTS, Entrants, Kind, Table, look_at, take_slots
from limner.errors import Guarded, Interrupted, UserError
from limner.files import remove
from limner.fitting import make_fit, plan_memory, slots_that_fit, telling_memory
from limner.lock import locked
from limner.planning import Told, length_of
from limner.ranks import Ranks, started
from limner.recipe import Recipe, changed, load_recipe, save_recipe
from limner.resuming import check_recipe, refuse_finished
from limner.run import check, paths_of, write_down
from limner.rundir import RunDir, read_json, write_json
from limner.training_together import Ended, Waiting, train_together
from limner.watch import Watch

LIST = "subjects.json"
"""In the folder that holds the runs: their names in order, what they are, and how many train at a time."""


@dataclass(frozen=True)
class Many:
    """What has become of runs that trained together."""

    path: Path
    """The folder that holds them."""
    ended: tuple[Ended, ...]
    kind: Kind = "subjects"

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
        raise kind(f"{len(wrong)} of {len(self.ended)} {self.kind} have not come to their end:{lines}\n", hint)


def train_many(
    subjects: str | Path | None = None,
    *,
    variants: Table | None = None,
    pictures: str | Path | Sequence[str | Path] = (),
    recipe: str | Path = "lora",
    settings: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    watch: Watch | None = None,
) -> Many:
    """Train many adapters on one base at once; each has a run of its own in `run`.

    One for each sub-folder of `subjects`, which is named after its token and class, such as "sks dog". Or one for each
    row of `variants`: a table (.csv, .toml, or mappings) whose columns are settings, or a grid such as
    "adapter.rank=4,8 seed=0,1", on the pictures that a row names, else on `pictures`. `settings` go to every run, but
    for `slots`: how many train at a time. What goes wrong with one is in the result (`Many.require_all` raises it), and
    the others train on.

    Raises:
        UserError: something that the user can mend, and that concerns all, or a row of the table.
    """
    watch = watch or Watch()
    paths = paths_of(pictures)
    entrants = look_at(subjects, variants, paths, recipe, settings or {}, watch)
    shown = Path(subjects or paths[0]).resolve().name if subjects or paths else ""
    shown = shown or (Path(variants).stem if isinstance(variants, str | Path) else "variants")
    return train_entrants(entrants, Path(run) if run else None, f"{Path(recipe).stem}-{shown}", watch)


def train_entrants(entrants: Entrants, run: Path | None, name: str, watch: Watch) -> Many:
    """Train all entrants in a new folder, `run` if given, else one of that name; what fails early leaves no folder."""
    _require_one_process()
    with _computing(entrants.largest[0], watch):
        slots = entrants.slots or slots_that_fit(*entrants.largest, min(SLOTS, len(entrants.checked)))
        parent = RunDir.create(run, name=name)
        with locked(parent.path):
            try:
                waiting = _write_down_all(parent.path, entrants, slots, watch)
                names = list(entrants.recipes)
                write_json(parent.path / LIST, {"kind": entrants.kind, "subjects": [one.name for one in waiting],
                                                "slots": slots})  # fmt: skip
                trained = _train(parent.path, waiting, slots, watch, entrants.board)
                return Many(parent.path, _in_order(names, entrants.ended, trained), entrants.kind)
            except UserError:
                if not any(parent.path.glob("*/checkpoints")):  # nothing was learned: leave nothing half-made
                    remove(parent.path)
                raise


def plan_many(
    subjects: str | Path | None = None,
    *,
    variants: Table | None = None,
    pictures: str | Path | Sequence[str | Path] = (),
    recipe: str | Path = "lora",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Told:
    """Return what `train_many` would need, phase by phase, before anything is loaded: one base and its slots.

    The phases are those of the run whose steps are the largest; the time is that of all.
    """
    watch = watch or Watch()
    entrants = look_at(subjects, variants, paths_of(pictures), recipe, settings or {}, watch)
    (largest, checked), count = entrants.largest, len(entrants.checked)
    slots = min(entrants.slots or SLOTS, count)
    every = sum(length_of(entrants.recipes[name], found).steps for name, found in entrants.checked.items())
    length = length_of(largest, checked)
    with watch.phase("plan"):
        together = plan_memory(largest, checked, replace(length, steps=ceil(every / slots)), slots=slots)
        alone = plan_memory(largest, checked, length) if slots > 1 else together
    taken, single = (next(row for row in told.facts["phases"] if row["phase"] == "train") for told in (together, alone))
    each = (taken["memory_gib"] - single["memory_gib"]) / max(1, slots - 1)
    disk = count * together.facts["disk_gib"]
    lines = [
        f"{count} {entrants.kind}, {slots} at a time, {every} steps in all; the disk is that of each, {disk:.2f} GiB "
        "of all",
        f"training takes {single['memory_gib']:.2f} GiB with one slot and {taken['memory_gib']:.2f} GiB with {slots}: "
        f"{each:.3f} GiB for each further one",
    ]
    facts = {**together.facts, entrants.kind: count, "slots": slots, "all_steps": every, "slot_gib": each,
             "alone_gib": single["memory_gib"], "disk_gib": disk}  # fmt: skip
    return Told((*together.lines, *lines), facts)


def resume_many(run: str | Path, *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None) -> Many:
    """Continue all runs of a folder that `train_many` made, each from its newest checkpoint; finished ones stay.

    `settings` may change what they may for one run, and `slots`.
    """
    many, trained = go_on(Path(run), settings or {}, watch or Watch())
    if not trained:
        raise UserError(f"{run}: all {len(many.ended)} {many.kind} are finished.",
                        "To go on with them: limner train --resume DIR steps=N")  # fmt: skip
    return many


def go_on(parent: Path, settings: Mapping[str, Any], watch: Watch) -> tuple[Many, int]:
    """Continue what is not finished, if anything; return how all stand, and how many were trained."""
    shared = dict(settings)
    _require_one_process()
    known = read_json(parent / LIST)
    slots = take_slots(shared) or known["slots"]
    accepted = shared.pop("accept_dataset_change", False) is True
    board = Board(watch, known["subjects"])
    waiting: list[Waiting] = []
    ended: dict[str, Ended] = {}
    with locked(parent):
        for name in known["subjects"]:
            try:
                one = _reopened(parent / name, shared, board.watch_of(name), accepted)
                if one:
                    waiting.append(one)
                else:
                    ended[name] = Ended(name, RunDir(parent / name))
            except UserError as error:
                ended[name] = Ended(name, RunDir(parent / name), error)
        wrong = [one.error for one in ended.values() if one.error]
        if not waiting and wrong:
            raise wrong[0]
        trained: list[Ended] = []
        if waiting:
            with _computing(waiting[0].recipe, watch):
                trained = _train(parent, waiting, slots, watch, board)
        return Many(parent, _in_order(known["subjects"], ended, trained), known.get("kind", "subjects")), len(trained)


def is_many(folder: Path) -> bool:
    """Tell whether a folder holds runs that `train_many` made."""
    return (folder / LIST).is_file()


def _train(parent: Path, waiting: Sequence[Waiting], slots: int, watch: Watch, board: Board) -> list[Ended]:
    """Train those who wait; return how each of them has ended."""
    runs = f"{len(waiting)} {'run' if len(waiting) == 1 else 'runs'}"
    watch.say(f"{runs}, {min(slots, len(waiting))} at a time, on one base")
    with ExitStack() as held, telling_memory(waiting[0].recipe, waiting[0].checked):
        for one in waiting:
            held.enter_context(locked(one.folder.path))
        return train_together(waiting, slots=slots, watch=watch, board=board)


def _in_order(names: Sequence[str], ended: Mapping[str, Ended], trained: Sequence[Ended]) -> tuple[Ended, ...]:
    by_name = {**ended, **{one.name: one for one in trained}}
    return tuple(by_name[name] for name in names)


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


def _write_down_all(parent: Path, entrants: Entrants, slots: int, watch: Watch) -> list[Waiting]:
    """Make every run's folder, before anything is loaded; what `fit` takes is the same for all."""
    together = min(slots, len(entrants.checked))
    _, fitted = make_fit(*entrants.largest, watch, Ranks(), slots=together)
    waiting: list[Waiting] = []
    for one in entrants.people:
        if one.name in entrants.checked:
            recipe, own = _fitted(one.name, entrants.recipes[one.name], fitted)
            folder = RunDir.create(parent / one.name, name=one.name)
            write_down(folder, recipe, one.pictures, None, fitted=own)
            waiting.append(Waiting(one.name, folder, recipe, entrants.checked[one.name]))
    return waiting


def _fitted(name: str, recipe: Recipe, fitted: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return a run's recipe as it fits, and what was changed; a batch that is parted stays what it was in all."""
    own = dict(fitted)
    if "accumulate" in own:
        parts = own["accumulate"] // recipe.accumulate
        if recipe.batch % parts:
            raise UserError(
                f"{name}: batch={recipe.batch} cannot be computed in {parts} equal parts, as the largest is.",
                f"Use a multiple of {parts}, or fewer at a time with slots=N.",
            )
        own["batch"] = recipe.batch // parts
    if not own and recipe.fit in (False, "off"):
        return recipe, own
    return changed(recipe, {**own, "fit": False}), own


def _require_one_process() -> None:
    if started().count > 1:
        raise UserError("Many at once run in one process.", "Start it without torchrun.")


@contextmanager
def _computing(recipe: Recipe, watch: Watch) -> Iterator[None]:
    """Compute as the recipe asks for within this block; refuses a device that is not there."""
    at = machine.place(recipe.device, recipe.precision)
    if recipe.deterministic and at.device.type == "cuda":
        watch.say("deterministic: attention uses the math kernel (slower)")
    with machine.deterministic(at.device) if recipe.deterministic else nullcontext():
        yield
