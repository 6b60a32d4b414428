"""The arms and subjects of a comparison: which recipe each arm is, with the settings of its own and of each subject."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.conflicts import check_settings, refuse_idle_everywhere, without_effect
from limner.errors import UserError
from limner.prepare.subjects import spec_of, subject_folders
from limner.recipe import Recipe, load_recipe, parse_settings, shipped_recipes

BASE = "base"
HELD_OUT = "evaluation.pictures"
OWN_OF_COMPARE = {
    "seed": "Give the training seeds with --seeds.",
    "pictures.subjects": "Give a folder of subjects with --subjects.",
}
"""Settings that the verb sets itself, and what to do instead."""


@dataclass(frozen=True)
class Arm:
    """One way of training: a recipe, and settings of the arm's own over it."""

    recipe: str
    """A shipped recipe's name, or a .toml file."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    words: str = ""
    """The settings as they were written."""

    @property
    def name(self) -> str:
        """Return what the arm is called everywhere: `lora`, `dreambooth[prior.enabled=false]`, `mine` for mine.toml."""
        return Path(self.recipe).stem + (f"[{self.words}]" if self.words else "")

    @property
    def folder(self) -> str:
        """Return the name as a folder's."""
        return re.sub(r"[^\w.=-]+", "-", self.name).strip("-")

    def load(self, settings: Mapping[str, Any]) -> Recipe:
        """Return the arm's recipe with `settings` and then its own laid over it."""
        try:
            return load_recipe(self.recipe, {**settings, **self.settings})
        except UserError as error:
            shared = next((key for key in settings if key in error.message and key not in self.settings), None)
            hint = f"{error.hint} Or give it to the arms that have it: NAME[{shared}=...]." if shared else error.hint
            raise UserError(f"arm {self.name}: {error.message}", hint) from error


@dataclass(frozen=True)
class Subject:
    """One subject: its name, its pictures, and the settings that are its own."""

    name: str
    pictures: tuple[Path, ...]
    is_named: bool = False
    """Whether the name says token and class noun: "sks dog"."""

    def settings(self, arm: Arm, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shared settings with the subject's own: token and class noun by its name, its held-out pictures.

        An arm that learns a word keeps its own token, which must not be a word of the base.
        """
        if not self.is_named:
            return dict(shared)
        recipe = arm.load(shared)
        own = spec_of(self.name, recipe.pictures)
        found = {**shared, "pictures.class_noun": own.class_noun} if own.class_noun else dict(shared)
        if "words" not in recipe.adapter.rates(recipe.learning_rate):
            found["pictures.token"] = own.token
        if HELD_OUT in shared:
            found[HELD_OUT] = str(Path(shared[HELD_OUT]) / self.name)
        return found


def parse_arms(text: str) -> list[Arm]:
    """Read "base,lora,dreambooth[prior.enabled=false]": names and files, each with settings in brackets if need be."""
    arms = [_parse(word) for word in _split(text) if word != BASE]
    names = [arm.name for arm in arms]
    for arm in arms:
        if names.count(arm.name) > 1 or [a.folder for a in arms].count(arm.folder) > 1:
            raise UserError(f"--arms: {arm.name} is named twice.", "Name each once, or give it other settings.")
        if arm.folder == BASE:
            raise UserError(f"--arms: {arm.name} is the base, which has no settings.", "Name the file otherwise.")
    if not arms:
        raise UserError(f"--arms {text}: names nothing but the base.", f"Use {', '.join(shipped_recipes())}.")
    return arms


def subjects_of(pictures: Sequence[Path], folder: Path | None) -> list[Subject]:
    """Return the subjects: the one that `pictures` shows, or each sub-folder of `folder`."""
    if bool(pictures) == bool(folder):
        found = f"--subjects {folder}: and pictures of one subject were given." if folder else "compare: no pictures."
        raise UserError(found, "Give the folder of one subject, or a folder of such folders with --subjects.")
    if not folder:
        return [Subject(pictures[0].resolve().name, tuple(pictures))]
    if not folder.is_dir():
        raise UserError(f"--subjects {folder}: there is no such folder.", "Name a folder of subjects' folders.")
    folders = subject_folders(folder)
    if not folders:
        raise UserError(f"--subjects {folder}: has no sub-folders.", "Make one for each, such as 'sks dog', 'sks cat'.")
    return [Subject(one.name, (one,), is_named=True) for one in folders]


def check_arms(arms: Sequence[Arm], subject: Subject, shared: Mapping[str, Any]) -> list[str]:
    """Refuse settings that contradict one another in an arm, or that do nothing in any; return lines to say.

    It looks at the arms as `subject` trains them: the subjects differ in token and class noun alone.

    Raises:
        UserError: names the arm.
    """
    for key in (*shared, *(key for arm in arms for key in arm.settings)):
        if key in OWN_OF_COMPARE:
            raise UserError(f"{key}: is no setting of a comparison.", OWN_OF_COMPARE[key])
    idle: list[dict[str, str]] = []
    lines: list[str] = []
    for arm in arms:
        recipe = arm.load(subject.settings(arm, shared))
        try:
            own_file = arm.recipe not in shipped_recipes()
            lines += [f"{arm.name}: {line}" for line in check_settings(recipe, given=arm.settings, own_file=own_file)]
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error.message}", error.hint) from error
        idle.append(dict(without_effect(recipe)))
    refuse_idle_everywhere(shared, idle, "arm")
    return lines


def _split(text: str) -> Iterator[str]:
    """Yield the words between commas that stand in no brackets."""
    depth, word = 0, ""
    for letter in f"{text},":
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if word.strip():
                yield word.strip()
            word = ""
        else:
            word += letter
    if word.strip(", "):
        raise UserError(f"--arms: {word.strip(', ')!r} has half a pair of brackets.", "Write NAME[key=value,...].")


def _parse(word: str) -> Arm:
    name, bracket, inner = word.partition("[")
    if bracket and not inner.endswith("]"):
        raise UserError(f"--arms: {word!r} is not NAME or NAME[key=value,...].", "Put a comma between arms.")
    words = list(_split(inner.removesuffix("]")))
    return Arm(name.strip(), parse_settings(words), ",".join(words))
