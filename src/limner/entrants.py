"""Who trains together: the subjects of a folder, or variants of a table; all is checked before a base is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limner.adapters.lora import LoRA
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.arms import subjects_of
from limner.board import Board
from limner.conflicts import check_settings, refuse_idle_everywhere, without_effect
from limner.errors import UserError
from limner.pictures.folder import find_pictures
from limner.prepare.check import Checked
from limner.prepare.subjects import refuse_colliding_tokens, refuse_shared_pictures, spec_of
from limner.recipe import Recipe, load_recipe, shipped_recipes
from limner.refining import suited
from limner.run import check
from limner.training_together import Ended
from limner.variants import Variant, read_variants
from limner.watch import Watch

Kind = Literal["subjects", "variants"]
Table = str | Path | Sequence[Mapping[str, Any]]
SLOTS = 8
"""At most so many train at a time where `slots` is not given."""
BY_FOLDER = {
    "pictures.token": "Each folder's name gives it: 'sks dog' has the token sks.",
    "pictures.subjects": "It teaches one adapter several subjects; --subjects trains one for each.",
}
"""Settings that --subjects has no use for, and why."""


@dataclass(frozen=True)
class Entrants:
    """Runs that are to train together, before anything is loaded."""

    kind: Kind
    people: Sequence[Variant]
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
        """Return the recipe and the pictures of the run whose steps need most memory: most pixels, then most ranks."""

        def size(name: str) -> tuple[int, int]:
            recipe, pixels = self.recipes[name], max(w * h for w, h in self.checked[name].shapes)
            adapter = recipe.adapter.lora if isinstance(recipe.adapter, Pivotal) else recipe.adapter
            rows = recipe.batch * (2 if recipe.prior.active else 1)
            return pixels * rows, adapter.rank if isinstance(adapter, LoRA) else 0

        name = max(self.checked, key=size)
        return self.recipes[name], self.checked[name]


def look_at(
    subjects: str | Path | None,
    variants: Table | None,
    pictures: Sequence[Path],
    recipe: str | Path,
    settings: Mapping[str, Any],
    watch: Watch,
) -> Entrants:
    """Check settings, names and pictures of all subjects of a folder, or of all rows of a table.

    Raises:
        UserError: something that concerns all of them, or a row of the table.
    """
    shared = dict(settings)
    slots = take_slots(shared)
    if not subjects and not variants:
        raise UserError("Nobody to train: neither subjects nor variants were given.", "Name a folder or a table.")
    if subjects and variants:
        raise UserError("--subjects and --variants: one of them says who trains.", "Leave one out; a table may name "
                        "the subjects' folders in its column pictures.")  # fmt: skip
    if variants:
        return enter(read_variants(variants, pictures), recipe, shared, slots, watch)
    return _look("subjects", _subjects(Path(subjects or ""), pictures, shared), recipe, shared, slots, watch)


def enter(
    variants: Sequence[Variant], recipe: str | Path, shared: Mapping[str, Any], slots: int | None, watch: Watch
) -> Entrants:
    """Check settings and pictures of all variants, `shared` settings laid beneath each one's own."""
    for one in variants:
        for key in one.settings:
            if key in shared:
                raise UserError(f"{one.where}: {key} is there, and {key}={shared[key]} is given to all.",
                                "Leave one of the two out.")  # fmt: skip
    return _look("variants", variants, recipe, shared, slots, watch)


def take_slots(shared: dict[str, Any]) -> int | None:
    """Take `slots` out of the settings; None where it is not given."""
    slots = shared.pop("slots", None)
    if slots is None:
        return None
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        raise UserError(f"slots={slots}: is no number of runs.", f"Use 1 or more; {SLOTS} is usual.")
    return slots


def _subjects(folder: Path, pictures: Sequence[Path], shared: Mapping[str, Any]) -> list[Variant]:
    """Return each sub-folder's subject: token and class noun are those of its name."""
    for key, why in BY_FOLDER.items():
        if key in shared:
            raise UserError(f"{key}: has no effect with --subjects. {why}", "Leave it out.")
    people = subjects_of(pictures, folder)
    refuse_colliding_tokens([one.name for one in people])
    found: list[Variant] = []
    for one in people:
        own = spec_of(one.name, Recipe().pictures)
        words = {"pictures.token": own.token, "pictures.class_noun": own.class_noun}
        held_out = shared.get("evaluation.pictures")
        if held_out:
            words["evaluation.pictures"] = str(Path(held_out) / one.name)
        found.append(Variant(one.name, one.pictures, {key: word for key, word in words.items() if word}))
    return found


def _look(
    kind: Kind,
    people: Sequence[Variant],
    recipe: str | Path,
    shared: Mapping[str, Any],
    slots: int | None,
    watch: Watch,
) -> Entrants:
    """Check the settings of all, then the pictures of all."""
    recipes = {one.name: _recipe_of(kind, one, recipe, shared, watch) for one in people}
    is_own = str(recipe) not in shipped_recipes()
    lines: list[str] = []
    for one in people:
        given = one.settings if kind == "variants" else {}
        with _naming(one):
            lines += check_settings(recipes[one.name], given=given, own_file=is_own)
            find_pictures(list(one.pictures))  # an empty folder is a mistake of the whole, not a bad picture
            recipes[one.name] = suited(recipes[one.name], watch)
    for line in dict.fromkeys(lines):
        watch.say(line)
    refuse_idle_everywhere(shared, [dict(without_effect(own)) for own in recipes.values()], "run")
    board = Board(watch, list(recipes))
    checked, ended = _check_all(kind, people, recipes, board)
    return Entrants(kind, people, recipes, checked, ended, slots, board)


def _recipe_of(kind: Kind, one: Variant, recipe: str | Path, shared: Mapping[str, Any], watch: Watch) -> Recipe:
    """Return the recipe of one run; of a subject's name, a word that is learned stands in brackets."""
    own = dict(one.settings)
    try:
        found = load_recipe(recipe, {**shared, **own})
    except UserError as error:
        if one.where and any(key in error.message for key in own):
            raise UserError(f"{one.where}: {error.message.removeprefix('settings: ')}", error.hint) from error
        raise
    _require_stackable(found)
    if kind == "variants" or not isinstance(found.adapter, TextualInversion | Pivotal):
        return found
    token = str(own["pictures.token"])
    own["pictures.token"] = token if token.startswith("<") else f"<{token}>"
    watch.say(f"{one.name}: the word that is learned is {own['pictures.token']}")
    return load_recipe(recipe, {**shared, **own})


def _require_stackable(recipe: Recipe) -> None:
    """Refuse an adapter or an objective whose slots cannot share a batch."""
    if not isinstance(recipe.adapter, LoRA | TextualInversion | Pivotal):
        raise UserError(
            f"adapter.kind={recipe.adapter.kind}: is trained one run at a time.",
            "Use lora, textual_inversion or pivotal, or train each by itself.",
        )
    if recipe.objective.kind == "consistency":
        raise UserError("objective.kind=consistency: teaches few steps, which belong to a base and not to a subject.",
                        "Train each by itself, or distill the base once: limner distill BASE")  # fmt: skip


def _check_all(
    kind: Kind, people: Sequence[Variant], recipes: Mapping[str, Recipe], board: Board
) -> tuple[dict[str, Checked], dict[str, Ended]]:
    """Check every run's pictures; one whose pictures cannot be used is left out, and said at the end.

    Raises:
        UserError: no run is left, or two subjects have the same picture.
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
    if kind == "subjects":
        every = [(name, example) for name, found in checked.items() for example in found.examples]
        likeness = {f"{name}/{example.name}": example.likeness for name, example in every}
        refuse_shared_pictures(likeness, {f"{name}/{example.name}": name for name, example in every})
    return checked, ended


@contextmanager
def _naming(one: Variant) -> Iterator[None]:
    """Say in front of an error which row of a table it is about."""
    try:
        yield
    except UserError as error:
        if not one.where:
            raise
        raise UserError(f"{one.where}: {error.message}", error.hint) from error


class _Lines(Watch):
    """Passes on lines alone."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def say(self, text: str) -> None:
        self._watch.say(text)
