"""A run or a base, and adapters, opened for drawing: what is wrong is said first, then all is loaded and acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.adapter_file import read_adapter, read_run
from limner.adapter_set import AdapterSet
from limner.adapters.strength import Strength, as_strength
from limner.conflicts import refuse_idle, require_use, without_effect
from limner.drawing import follow_objective, load_base
from limner.errors import UserError
from limner.export.diffusers_folder import ABOUT
from limner.families.decoder import SETTING as DECODER
from limner.families.family import Family
from limner.families.source import is_hub_name, locate
from limner.generate.draw import Sampling
from limner.generate.few_steps import FewSteps, few_steps_of
from limner.recipe import Recipe, load_recipe
from limner.refining import check_partner, load_partner, require_beginning
from limner.result import require_result
from limner.rundir import RunDir, read_json
from limner.watch import Watch

DRAWING = ("generation", "resolution", "base", "device", "precision", "evaluation")
"""The settings that drawing heeds; the last is for a run's comparison."""
Adapters = Sequence[tuple[str | Path, Strength | float]]


@dataclass(frozen=True)
class Wanted:
    """What is asked to draw, checked and not loaded yet."""

    folder: RunDir | None
    """The run, where it is one and no base."""
    recipe: Recipe
    adapters: Adapters
    """Those beside the run's own."""
    sampling: Sampling
    """How it draws: as the settings say, and as a few-step adapter needs it."""
    lines: tuple[str, ...]
    """What is to be said of that."""
    partial: bool = False
    """Whether what of an adapter's file does not fit is left out, instead of an error."""

    @property
    def model(self) -> Path | None:
        """Return the whole model that the run trained, if it did."""
        return self.folder.model if self.folder and self.folder.model.is_dir() else None

    @property
    def used(self) -> list[tuple[str | Path, Strength | float]]:
        """Return every file that draws beside the base, at its strength."""
        own = require_result(self.folder) if self.folder else []
        return [*((path, 1.0) for path in own), *self.adapters]

    @property
    def about(self) -> dict[str, Any]:
        """Return what the manifest of its pictures says of it."""
        used = [[str(path), as_strength(strength).said] for path, strength in self.used]
        return {"base": self.recipe.base, "adapters": used}


def what_draws(
    source: str | Path,
    adapters: Adapters,
    settings: Mapping[str, Any] | None,
    *,
    force_guidance: bool = False,
    partial: bool = False,
    is_live: bool = False,
) -> Wanted:
    """Return what is asked to draw, after finding what is wrong with it; nothing of a base is loaded.

    Live drawing heeds two settings more: a small decoder, for its pictures do not stay, and `fast`.

    Raises:
        UserError: there is no such run, base or adapter, or a setting that has no effect or does not fit an adapter.
    """
    given, path = settings or {}, Path(source)
    folder = RunDir.open(path) if (path / "recipe.toml").is_file() else None
    if folder is None and locate(str(source)) is None and not is_hub_name(str(source)):
        raise UserError(f"{source}: there is no such run folder or base.", "Give a run's folder, or a base (tiny).")
    recipe = load_recipe(folder.recipe, given) if folder else load_recipe(None, {"base": str(source), **given})
    live = (DECODER, "fast") if is_live else ()
    if DECODER in given and not is_live:
        raise UserError(f"{DECODER}: has no effect on pictures that stay: the base's VAE decodes them.",
                        "Leave it out, or draw with --live.")  # fmt: skip
    rest = [name for name in given if name not in live]
    require_use(rest, DRAWING if folder else DRAWING[:-1], "drawing")
    few = _few_steps(path, folder, adapters, partial=partial)
    sampling, lines = _fitted(recipe.generation, given, few, force_guidance=force_guidance)
    idle = dict(without_effect(recipe.model_copy(update={"generation": sampling})))
    refuse_idle(rest, idle)
    return Wanted(folder, recipe, adapters, sampling, tuple(lines), partial)


def _few_steps(source: Path, folder: RunDir | None, adapters: Adapters, *, partial: bool) -> dict[Path, FewSteps]:
    """Return how each is drawn with that draws in few steps: of the adapters that act, and a base with one in it."""
    files = {Path(name): read_adapter(Path(name), partial=partial) for name, _ in adapters}  # says what is wrong
    files = {Path(name): files[Path(name)] for name, s in adapters if as_strength(s) != Strength(0.0)}
    if folder and folder.adapter.is_file():
        files[folder.path] = read_run(folder)
    few = {name: one.few_steps for name, parts in files.items() for one in parts if one.few_steps}
    about = read_json(source / ABOUT) if (source / ABOUT).is_file() else {}
    merged = few_steps_of(about, source / ABOUT)
    return {**({source: merged} if merged else {}), **few}


def _fitted(
    usual: Sampling, given: Mapping[str, Any], few: Mapping[Path, FewSteps], *, force_guidance: bool
) -> tuple[Sampling, list[str]]:
    """Return how to draw with few-step adapters, each under the name that the user gave it."""
    if len(few) > 1:
        raise UserError(f"{' and '.join(map(str, few))} are both few-step adapters.", "Use one of them at a time.")
    for name, one in few.items():
        return one.fitted(usual, given, str(name), force_guidance=force_guidance)
    if force_guidance:
        raise UserError("--force-guidance: there is no few-step adapter.", "Leave it out.")
    return usual, []


@dataclass(frozen=True)
class Opened:
    """A base that is loaded, and the adapters on it."""

    family: Family
    adapters: AdapterSet


@contextmanager
def opened(wanted: Wanted, watch: Watch) -> Iterator[Opened]:
    """Load what is asked to draw and let it act within this block; afterwards the base is bit for bit what it was."""
    recipe, folder, model = wanted.recipe, wanted.folder, wanted.model
    if folder:
        require_result(folder)
    drawing = recipe.model_copy(update={"base": str(model)}) if model else recipe
    check_partner(drawing)
    require_beginning(drawing, str(folder.path) if folder else recipe.base)
    family = load_base(recipe, watch, model=model)
    load_partner(family, recipe, watch)
    acting, strengths = AdapterSet(family), dict[str, Strength | float]()
    if folder and not model:
        strengths[acting.load(folder.path)] = 1.0
        follow_objective(family, recipe)
    strengths |= {acting.load(path, partial=wanted.partial): strength for path, strength in wanted.adapters}
    acting.set(strengths)
    for line in (*acting.left_out, *acting.clashes(), *wanted.lines):
        watch.say(line)
    try:
        yield Opened(family, acting)
    finally:
        acting.set({})
