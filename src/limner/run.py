"""The composition root: recipe -> objects -> stages; the only module that knows them all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limner import machine
from limner.conflicts import check_base, check_settings, refuse_idle, require_captions, require_use
from limner.drawing import draw_comparison, say_faults
from limner.errors import UserError
from limner.families.load import native_resolution
from limner.files import default_cache, remove, require_writable
from limner.fitting import make_fit, plan_memory, telling_memory
from limner.generate.draw import check_resolution, draw, requests_for
from limner.lock import locked
from limner.opening import Adapters, opened, what_draws
from limner.pictures.cache import ROOM
from limner.pictures.folder import find_pictures
from limner.planning import Told, length_of, plan_run
from limner.prepare.check import Checked, check_class_pictures, check_pictures
from limner.prepare.held_out import with_held_out
from limner.prepare.plan import Plan
from limner.prepare.words import word_notes
from limner.ranks import Ranks, joined
from limner.recipe import Recipe, load_recipe, save_recipe, shipped_recipes
from limner.refining import suited
from limner.resuming import check_recipe, computed, refuse_finished
from limner.rundir import RunDir, read_json, unused
from limner.scoring import require_judges, score
from limner.starting import find_start
from limner.taught import draw_taught, is_whole
from limner.training_run import train_adapter
from limner.underlying import check_underlying
from limner.watch import Watch

Settings = Mapping[str, Any]
Paths = str | Path | Sequence[str | Path]


def train(
    pictures: Paths,
    *,
    recipe: str | Path | Recipe = "lora",
    settings: Settings | None = None,
    class_pictures: str | Path | None = None,
    run: str | Path | None = None,
    watch: Watch | None = None,
) -> RunDir:
    """Teach the recipe's base the subject of `pictures`; return the run folder with the adapter file in it.

    `settings` are laid over the recipe ("adapter.rank": 4). `class_pictures` is a folder for prior preservation;
    without it the base draws them.

    Raises:
        UserError: something that the user can mend, found before the first step.
        Interrupted: Ctrl-C; the checkpoint and the adapter of that step are saved.
        Guarded: the loss was not finite again and again.
    """
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    paths = paths_of(pictures)
    refuse_idle(settings or {}, {"distill.images": "pictures are given (limner distill draws them)"})
    if class_pictures and not resolved.prior.active:
        raise UserError(f"{class_pictures}: class pictures were given, and prior preservation is off.",
                        "Add prior.enabled=true (and a prior.weight above 0), or leave them out.")  # fmt: skip
    if class_pictures:
        _require_pictures(Path(class_pictures), "--class-pictures")
    lines = check_settings(resolved, given=settings, own_file=_is_own(recipe), class_pictures=bool(class_pictures))
    if resolved.init_from:
        find_start(resolved.init_from)
    check_underlying(resolved)
    with joined() as ranks, _computing(resolved, ranks, watch) as watch:
        for line in lines:
            watch.say(line)
        folder = _new_folder(run, f"{_recipe_name(recipe)}-{paths[0].resolve().name}", ranks)
        with _alone(folder):
            return _begin(folder, resolved, paths, Path(class_pictures) if class_pictures else None, watch, ranks)


def _begin(
    folder: RunDir, recipe: Recipe, paths: list[Path], class_pictures: Path | None, watch: Watch, ranks: Ranks
) -> RunDir:
    """Check, write down what the run is, and train; what fails before anything was learned leaves no folder."""
    try:
        with ranks.first_then_others(), watch.phase("check"), folder.timed("check"):
            checked = _check(paths, recipe, watch)
            if class_pictures:  # before anything is loaded; what is found is read again when they are used
                check_class_pictures(class_pictures, recipe.pictures, recipe.prior, instance=paths,
                                     resolution_px=checked.resolution_px, cache=default_cache())  # fmt: skip
        recipe = suited(recipe, watch, class_pictures=class_pictures is not None)
        recipe, fitted = make_fit(recipe, checked, watch, ranks)
        write_down(folder, recipe, paths, class_pictures, fitted=fitted, processes=ranks.count)
        ranks.wait()
        with telling_memory(recipe, checked):
            return train_adapter(folder, recipe, checked, class_pictures, watch, ranks=ranks)
    except UserError:
        if folder.writes and not folder.checkpoints.is_dir():  # nothing was learned: leave nothing half-made
            remove(folder.path)
        raise


def write_down(
    folder: RunDir,
    recipe: Recipe,
    paths: Sequence[Path],
    class_pictures: Path | None,
    *,
    fitted: Mapping[str, Any],
    processes: int = 1,
) -> None:
    """Write down what a run is; with it the folder is a run, which can be resumed."""
    folder.update_provenance(
        fit=dict(fitted), command=sys.argv, versions=machine.versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"), hardware=machine.hardware(),
        computed=computed(recipe, processes), deterministic=recipe.deterministic,
        pictures=[str(p.resolve()) for p in paths],
        class_pictures=str(class_pictures.resolve()) if class_pictures else None,
    )  # fmt: skip
    if folder.writes:
        save_recipe(recipe, folder.recipe)  # last


def _alone(folder: RunDir) -> AbstractContextManager[None]:
    """Keep other runs out of the folder; the processes that share a run have one lock, that of the first."""
    return locked(folder.path) if folder.writes else nullcontext()


def _new_folder(run: str | Path | None, name: str, ranks: Ranks) -> RunDir:
    """Make the run's folder, which one of its processes does and tells the others."""
    made = RunDir.create(Path(run) if run else None, name=name).path if ranks.is_first else ""
    return RunDir(Path(ranks.told(str(made))), writes=ranks.is_first)


@contextmanager
def _computing(recipe: Recipe, ranks: Ranks, watch: Watch | None) -> Iterator[Watch]:
    """Check that the machine can do what the recipe asks for, and compute so within this block; yield who is told."""
    watch = watch if watch and ranks.is_first else Watch()
    ranks.check(recipe.batch, recipe.accumulate, 2 if recipe.prior.active else 1)
    at = machine.place(recipe.device, recipe.precision)  # refuses a device that is not there
    if recipe.deterministic and at.device.type == "cuda":
        watch.say("deterministic: attention uses the math kernel (slower)")
    if ranks.count > 1:
        watch.say(f"{ranks.count} processes share each batch of {recipe.batch}")
    with machine.deterministic(at.device) if recipe.deterministic else nullcontext():
        yield watch


def check(
    pictures: Paths,
    *,
    recipe: str | Path | Recipe = "lora",
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Checked:
    """Find every problem of pictures, captions and settings, before anything is loaded."""
    return _look(pictures, recipe, settings, watch or Watch())[1]


def plan(
    pictures: Paths,
    *,
    recipe: str | Path | Recipe = "lora",
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Told:
    """Return what a run will need, phase by phase, before anything is loaded: memory, time, disk.

    The device need not be here: `device=cuda fit=8GB` plans for a card of 8 GiB. With `fit` its measures are taken and
    said; without it they are proposed where the run would not fit.
    """
    watch = watch or Watch()
    resolved, checked, length = _look(pictures, recipe, settings, watch)
    with watch.phase("plan"):
        return plan_memory(resolved, checked, length)


def _look(
    pictures: Paths, recipe: str | Path | Recipe, settings: Settings | None, watch: Watch
) -> tuple[Recipe, Checked, Plan]:
    """Check settings and pictures, say what is found, and how long the run would be."""
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    if resolved.init_from:
        find_start(resolved.init_from)
    check_underlying(resolved)
    for line in check_settings(resolved, given=settings, own_file=_is_own(recipe)):
        watch.say(line)
    with watch.phase("check"):
        checked = _check(paths_of(pictures), resolved, watch)
    resolved = suited(resolved, watch)
    return resolved, checked, plan_run(resolved, checked, resolved.prior.count if resolved.prior.active else 0, watch)


def resume(run: str | Path, *, settings: Settings | None = None, watch: Watch | None = None) -> RunDir:
    """Continue a run that was stopped, from its newest complete checkpoint; the result is that of an unbroken run.

    `settings` may change what `resuming.MAY_CHANGE` lists; accept_dataset_change=true goes on with other pictures.
    """
    settings = dict(settings or {})
    accepted = settings.pop("accept_dataset_change", False)
    if not isinstance(accepted, bool):
        raise UserError(f"accept_dataset_change={accepted!r}: is not allowed.", "Use true, or leave it out.")
    folder = RunDir.open(Path(run))
    recipe = load_recipe(folder.recipe, settings)
    check_recipe(folder, recipe)
    check_settings(recipe, given=settings)
    known = read_json(folder.provenance)
    class_pictures = Path(known["class_pictures"]) if known["class_pictures"] else None
    with joined() as ranks, _computing(recipe, ranks, watch) as watch:
        folder = RunDir(folder.path, writes=ranks.is_first)
        with _alone(folder):
            with ranks.first_then_others(), watch.phase("check"):
                paths = [Path(p) for p in known["pictures"]]
                if recipe.distill.images and not is_whole(paths[0]):
                    draw_taught(recipe, watch, subject=folder.subject if recipe.distill.adapter else None)
                checked = _check(paths, recipe, watch)
            recipe = suited(recipe, watch, class_pictures=class_pictures is not None)
            refuse_finished(folder, recipe, length_of(recipe, checked).steps)
            if folder.writes:
                save_recipe(recipe, folder.recipe)
            with telling_memory(recipe, checked):
                return train_adapter(folder, recipe, checked, class_pictures, watch, ranks=ranks,
                                     accept_dataset_change=accepted)  # fmt: skip


def generate(  # noqa: PLR0913 - each is a question of its own, and all but two have an answer
    source: str | Path,
    prompts: Sequence[str] = (),
    *,
    adapters: Adapters = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    out: str | Path | None = None,
    settings: Settings | None = None,
    force_guidance: bool = False,
    allow_partial: bool = False,
    watch: Watch | None = None,
) -> Path:
    """Draw pictures from a run or a base; return the folder.

    With prompts: one picture per prompt and seed, with the run's adapter and `adapters` (file or run, strength).
    Without: the run's comparison pictures, `images/base` and `images/tuned`, for the same prompts and seeds.
    A few-step adapter is drawn with as its file says, unless `settings` say otherwise; guidance that blurs is kept
    with `force_guidance` alone. `allow_partial`: what of an adapter's file does not fit is left out and said.
    """
    watch = watch or Watch()
    wanted = what_draws(source, adapters, settings, force_guidance=force_guidance, partial=allow_partial)
    _require_place(Path(out) if out else None)
    folder = wanted.folder
    if not prompts:
        if folder is None:
            raise UserError(f"{source}: is a base, and no prompt was given.", "Give one or more with --prompt.")
        draw_comparison(folder, wanted.recipe, watch)
        return folder.images
    out = Path(out) if out else unused(folder.path if folder else Path(), "drawn")
    requests = requests_for("free", [(prompt, prompt) for prompt in prompts], seeds)
    with opened(wanted, watch) as ready:
        resolution_px = check_resolution(ready.family, wanted.recipe.resolution)
        left_out = {"left_out": ready.adapters.left_out} if ready.adapters.left_out else {}
        with watch.phase("draw"):
            made = draw(ready.family, requests, out, sampling=wanted.sampling, about={**wanted.about, **left_out},
                        progress=watch.progress, resolution_px=resolution_px)  # fmt: skip
        say_faults(made, str(out), watch, tuned=bool(wanted.used))
    return out


def evaluate(runs: Paths, *, watch: Watch | None = None) -> Path:
    """Score a run, or several side by side: draw their pictures where missing, measure them; return the file of scores.

    One run gets its scores.json; several of one subject get a comparison.json beside the first run's folder.
    """
    from limner.evaluate.images import check_runs

    watch = watch or Watch()
    folders = [RunDir.open(path) for path in paths_of(runs)]
    check_runs(folders)
    recipes = [load_recipe(folder.recipe) for folder in folders]
    for folder, recipe in zip(folders, recipes, strict=True):
        draw_comparison(folder, recipe, watch)
    is_alone = len(folders) == 1
    with watch.phase("evaluate"), folders[0].timed("evaluate") if is_alone else nullcontext():
        score(folders, recipes, _scores(folders), watch)
    return _scores(folders)


def report(runs: Paths, *, out: str | Path | None = None, watch: Watch | None = None) -> Path:
    """Write the page of a run, or of several side by side, from what `evaluate` left; return it.

    Without `out` it is the run's report.html, or comparison.html beside the first run's folder.
    """
    from limner.report.report import report as write

    folders = [RunDir.open(path) for path in paths_of(runs)]
    page = folders[0].report if len(folders) == 1 else _scores(folders).with_suffix(".html")
    if out and Path(out).is_dir():
        raise UserError(f"--out {out}: is a folder.", "Name the file to write, such as page.html.")
    _require_place(Path(out).parent if out else None)
    with (watch or Watch()).phase("report"):
        return write(folders, _scores(folders), Path(out or page))


def caption(
    pictures: Paths, model: str, out: str | Path, *, settings: Settings | None = None, watch: Watch | None = None
) -> Path:
    """Caption pictures with an image-to-text model into a .jsonl file for `pictures.captions_file`; return it."""
    from limner.prepare.caption import caption_pictures, load_captioner

    watch = watch or Watch()
    recipe = load_recipe(None, settings)
    require_use(settings or {}, ("pictures", "device", "precision"), "captions")
    _require_place(Path(out).parent)
    with watch.phase("load"):
        captioner = load_captioner(model, device=machine.place(recipe.device, recipe.precision).device)
    with watch.phase("caption"):
        return caption_pictures(paths_of(pictures), captioner, Path(out), spec=recipe.pictures, progress=watch.progress)


def _check(paths: Sequence[Path], recipe: Recipe, watch: Watch) -> Checked:
    """Check the pictures at the resolution of the base, before its weights are loaded."""
    require_writable(default_cache(), ROOM)
    if not recipe.pictures.subjects:
        find_pictures(paths)  # says what is wrong with the folder before the base is looked for, perhaps on the hub
    check_base(recipe)
    require_judges(recipe)
    resolution_px = recipe.resolution or native_resolution(recipe.base)
    checked = check_pictures(
        paths, recipe.pictures, resolution_px=resolution_px, cache=default_cache(), progress=watch.progress
    )
    require_captions(recipe, checked)
    learned = "words" in recipe.adapter.rates(recipe.learning_rate)
    of_no_subject = recipe.learns_few_steps and not recipe.pictures.token
    words = [] if of_no_subject else word_notes(recipe.base, recipe.pictures, checked, learned=learned)
    for note in (*checked.notes, *words):
        watch.say(note)
    if recipe.evaluation.pictures:
        _require_pictures(recipe.evaluation.pictures, "evaluation.pictures")
        checked = with_held_out(checked, recipe.evaluation.pictures, recipe.pictures, cache=default_cache())
    length_of(recipe, checked)  # refuses a length given twice
    return checked


def _scores(folders: Sequence[RunDir]) -> Path:
    """Return where the scores of a run lie, or those of several side by side."""
    first = folders[0]
    return first.scores if len(folders) == 1 else first.path.parent / "comparison.json"


def paths_of(given: Paths) -> list[Path]:
    """Return the paths that were given, one or several."""
    return [Path(given)] if isinstance(given, str | Path) else [Path(p) for p in given]


def _require_place(folder: Path | None) -> None:
    """Refuse a folder for --out that cannot be made or written to, before anything is computed for it."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), None) if folder else None
    if there and not (there.is_dir() and os.access(there, os.W_OK)):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"--out: {folder} cannot be made, because {there} {why}.", "Name another with --out.")


def _require_pictures(place: Path, what: str) -> None:
    if not place.exists():
        raise UserError(f"{what}={place}: there is no such file or folder.", "Name a folder of pictures.")


def _is_own(recipe: str | Path | Recipe) -> bool:
    """Tell whether a recipe is a file of the user's, and none that ships with the package."""
    return not isinstance(recipe, Recipe) and str(recipe) not in shipped_recipes()


def _recipe_name(recipe: str | Path | Recipe) -> str:
    return "run" if isinstance(recipe, Recipe) else Path(recipe).stem
