"""The composition root: recipe -> objects -> stages; the only module that knows them all."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limner import machine
from limner.adapters.adapter import Attached, SlotSettings
from limner.drawing import class_pictures as class_pictures_for
from limner.drawing import draw_comparison, load_base, preview
from limner.errors import Interrupted, UserError
from limner.families.family import Family
from limner.families.load import native_resolution
from limner.families.source import is_hub_name, locate
from limner.generate.draw import check_resolution, draw, requests_for
from limner.interrupt import noted_signals
from limner.pictures.cache import default_cache
from limner.pictures.folder import find_pictures
from limner.prepare.check import Checked, check_pictures
from limner.prepare.encode import prepare
from limner.prepare.plan import Plan, batch_notes, plan_length
from limner.prepare.prepared import Prepared
from limner.prepare.save import save_pictures
from limner.prepare.subjects import spec_of
from limner.recipe import LENGTHS, Recipe, load_recipe, save_recipe
from limner.result import attach_file, attach_result, require_result, results, try_result, write_result
from limner.rundir import RunDir, read_json, unused
from limner.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from limner.train.loop import Slot, SlotStep, Training
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
    watch = watch or Watch()
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    paths = _paths(pictures)
    resolved.check_words()
    if class_pictures and not resolved.prior.active:
        raise UserError(f"{class_pictures}: class pictures were given, and prior preservation is off.",
                        "Add prior.enabled=true (and a prior.weight above 0), or leave them out.")  # fmt: skip
    machine.place(resolved.device, resolved.precision)  # refuses a device that is not there
    folder = RunDir.create(Path(run) if run else None, name=f"{_recipe_name(recipe)}-{paths[0].resolve().name}")
    try:
        with watch.phase("check"), folder.timed("check"):
            checked = _check(paths, resolved, watch)
        save_recipe(resolved, folder.recipe)
        folder.update_provenance(
            command=sys.argv, date=datetime.now(UTC).isoformat(timespec="seconds"), versions=machine.versions(),
            hardware=machine.hardware(), pictures=[str(p.resolve()) for p in paths],
            class_pictures=str(Path(class_pictures).resolve()) if class_pictures else None,
        )  # fmt: skip
        return _train(folder, resolved, checked, Path(class_pictures) if class_pictures else None, watch)
    except UserError:
        if not folder.checkpoints.is_dir():  # nothing was learned: leave nothing half-made
            shutil.rmtree(folder.path)
        raise


def check(
    pictures: Paths,
    *,
    recipe: str | Path | Recipe = "lora",
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Checked:
    """Find every problem of pictures, captions and settings, before anything is loaded."""
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    resolved.check_words()
    watch = watch or Watch()
    with watch.phase("check"):
        checked = _check(_paths(pictures), resolved, watch)
    _plan(resolved, checked, resolved.prior.count if resolved.prior.active else 0, watch)
    return checked


def resume(run: str | Path, *, settings: Settings | None = None, watch: Watch | None = None) -> RunDir:
    """Continue a run that was stopped, from its newest complete checkpoint; the result is that of an unbroken run.

    Only the length, `checkpoint.*`, `preview.*` and `evaluation.*` may be changed by `settings`.
    """
    watch = watch or Watch()
    folder = RunDir.open(Path(run))
    for key in settings or {}:
        if key not in LENGTHS and key.partition(".")[0] not in ("checkpoint", "preview", "evaluation"):
            raise UserError(f"{key}: cannot change when a run is resumed.", "Leave it out, or start a new run.")
    recipe = load_recipe(folder.recipe, settings)
    known = read_json(folder.provenance)
    with watch.phase("check"):
        checked = _check([Path(p) for p in known["pictures"]], recipe, watch)
    save_recipe(recipe, folder.recipe)
    class_pictures = Path(known["class_pictures"]) if known["class_pictures"] else None
    return _train(folder, recipe, checked, class_pictures, watch)


def generate(
    source: str | Path,
    prompts: Sequence[str] = (),
    *,
    adapters: Sequence[tuple[str | Path, float]] = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    out: str | Path | None = None,
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Path:
    """Draw pictures from a run or a base; return the folder.

    With prompts: one picture per prompt and seed, with the run's adapter and any further `adapters` (file, strength).
    Without: the run's comparison pictures, `images/base` and `images/tuned`, for the same prompts and seeds.
    """
    watch = watch or Watch()
    folder = RunDir.open(Path(source)) if (Path(source) / "recipe.toml").is_file() else None
    if folder is None and locate(str(source)) is None and not is_hub_name(str(source)):
        raise UserError(f"{source}: there is no such run folder or base.", "Give a run's folder, or a base (tiny).")
    on_base = {"base": str(source), **(settings or {})}
    recipe = load_recipe(folder.recipe, settings) if folder else load_recipe(None, on_base)
    if not prompts:
        if folder is None:
            raise UserError(f"{source}: is a base, and no prompt was given.", "Give one or more with --prompt.")
        draw_comparison(folder, recipe, watch)
        return folder.images
    own = require_result(folder) if folder else []
    whole = folder is not None and folder.model.is_dir()
    family = load_base(recipe, watch, model=folder.model if folder and whole else None)
    attached = attach_result(family, folder) if folder and not whole else []
    attached += [attach_file(family, Path(path), strength) for path, strength in adapters]
    out = Path(out) if out else unused(folder.path if folder else Path(), "drawn")
    requests = requests_for("free", [(prompt, prompt) for prompt in prompts], seeds)
    used = [*((path, 1.0) for path in own), *adapters]
    about = {"base": recipe.base, "adapters": [[str(path), strength] for path, strength in used]}
    with watch.phase("draw"):
        draw(family, requests, out, sampling=recipe.generation, about=about, progress=watch.progress,
             resolution_px=check_resolution(family, recipe.resolution))  # fmt: skip
    for one in attached:
        one.detach()
    return out


def evaluate(runs: Paths, *, watch: Watch | None = None) -> Path:
    """Score a run, or several side by side: draw their pictures where missing, measure them; return the file of scores.

    One run gets its scores.json; several of one subject get a comparison.json beside the first run's folder.
    """
    from limner.evaluate.evaluate import evaluate as score
    from limner.evaluate.images import check_runs

    watch = watch or Watch()
    folders = [RunDir.open(path) for path in _paths(runs)]
    check_runs(folders)
    for folder in folders:
        draw_comparison(folder, load_recipe(folder.recipe), watch)
    is_alone = len(folders) == 1
    with watch.phase("evaluate"), folders[0].timed("evaluate") if is_alone else nullcontext():
        score(folders, _scores(folders), progress=watch.progress)
    return _scores(folders)


def report(runs: Paths, *, out: str | Path | None = None, watch: Watch | None = None) -> Path:
    """Write the page of a run, or of several side by side, from what `evaluate` left; return it.

    Without `out` it is the run's report.html, or comparison.html beside the first run's folder.
    """
    from limner.report.report import report as write

    folders = [RunDir.open(path) for path in _paths(runs)]
    page = folders[0].report if len(folders) == 1 else _scores(folders).with_suffix(".html")
    if out and Path(out).is_dir():
        raise UserError(f"--out {out}: is a folder.", "Name the file to write, such as page.html.")
    with (watch or Watch()).phase("report"):
        return write(folders, _scores(folders), Path(out or page))


def caption(
    pictures: Paths, model: str, out: str | Path, *, settings: Settings | None = None, watch: Watch | None = None
) -> Path:
    """Caption pictures with an image-to-text model into a .jsonl file for `pictures.captions_file`; return it."""
    from limner.prepare.caption import caption_pictures, load_captioner

    watch = watch or Watch()
    recipe = load_recipe(None, settings)
    with watch.phase("load"):
        captioner = load_captioner(model, device=machine.place(recipe.device, recipe.precision).device)
    with watch.phase("caption"):
        return caption_pictures(_paths(pictures), captioner, Path(out), spec=recipe.pictures, progress=watch.progress)


def demo(run: str | Path | None = None, *, settings: Settings | None = None, watch: Watch | None = None) -> RunDir:
    """Do the main job once on the embedded base and five shipped pictures: train, draw, score, report."""
    from limner.families.source import ASSETS

    recipe = load_recipe("demo", settings)
    folder = train(ASSETS / "demo" / "critter", recipe=recipe, run=run, watch=watch)
    evaluate(folder.path, watch=watch)
    report(folder.path, watch=watch)
    return folder


def _train(folder: RunDir, recipe: Recipe, checked: Checked, class_pictures: Path | None, watch: Watch) -> RunDir:
    """Load, cache, train and save: the part that a new and a resumed run share."""
    with folder.timed("load"):
        family = load_base(recipe, watch)
    resolution_px = check_resolution(family, recipe.resolution)
    prior = (
        class_pictures_for(folder, recipe, family, class_pictures, resolution_px, watch)
        if recipe.prior.active
        else None
    )
    with watch.phase("prepare"), folder.timed("prepare"):
        prepared = prepare(checked, family, spec=recipe.pictures, cache=default_cache(), prior=prior,
                           prior_weight=recipe.prior.weight, batch=recipe.batch, progress=watch.progress)  # fmt: skip
        save_pictures(checked, recipe.pictures, folder.pictures)
    for note in prepared.notes:
        watch.say(note)
    plan = _plan(recipe, checked, prepared.num_prior_examples, watch)
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=recipe.seed, words=_words(recipe, checked))])
    rates = recipe.adapter.rates(recipe.learning_rate)
    slot = Slot("subject", prepared, recipe.seed, plan.steps, recipe.learning_rate, rates)
    training = Training(family, adapter, [slot], objective=recipe.objective, optimizer=recipe.optimizer)
    _continue(folder, training, prepared)
    try_result(folder, recipe, family, adapter)
    with watch.phase("train"), folder.timed("train"):
        _steps(folder, recipe, family, training, watch)
    _save_adapter(folder, recipe, family, adapter)
    return folder


def _plan(recipe: Recipe, checked: Checked, num_prior_examples: int, watch: Watch) -> Plan:
    """Derive the length of the run from the one that was given, and say it."""
    plan = plan_length(checked, batch=recipe.batch, steps=recipe.steps, epochs=recipe.epochs,
                       exposures=recipe.exposures, num_prior_examples=num_prior_examples)  # fmt: skip
    for line in (plan.line, *batch_notes(checked, recipe.batch)):
        watch.say(line)
    return plan


def _continue(folder: RunDir, training: Training, prepared: Prepared) -> None:
    """Load the newest complete checkpoint, if there is one, after checking that the pictures are the same."""
    checkpoints = complete_checkpoints(folder.checkpoints)
    if not checkpoints:
        folder.update_provenance(data_fingerprint=prepared.fingerprint)
        return
    if read_json(folder.provenance).get("data_fingerprint") != prepared.fingerprint:
        raise UserError(
            f"{folder.path}: the pictures or captions changed since the checkpoint, so the run cannot go on exactly.",
            "Put them back, or start a new run.",
        )
    load_checkpoint(training, checkpoints[-1])
    if training.index >= training.steps:
        raise UserError(f"{folder.path}: is already finished: {training.index} of {training.steps} steps.",
                        "Raise steps to continue: limner train --resume RUN steps=N")  # fmt: skip


def _steps(folder: RunDir, recipe: Recipe, family: Family, training: Training, watch: Watch) -> None:
    """Consume the training loop: log, checkpoint, preview, and stop at Ctrl-C after the step in hand."""
    every = recipe.checkpoint.every_steps
    with noted_signals() as stopped:
        for step in training:
            one = step.slots[0]
            folder.append_log("step", step=step.index, seconds=step.seconds, **_logged(one))
            watch.progress(step.index, training.steps, f"loss {one.loss:.3f}")
            last = step.index == training.steps
            if stopped and not last:
                _stop(folder, recipe, family, training)
            if last or (every and step.index % every == 0):
                save_checkpoint(training, folder.checkpoints, keep=recipe.checkpoint.keep)
            if recipe.preview.every_steps and step.index % recipe.preview.every_steps == 0:
                preview(folder, recipe, family, step.index)


def _stop(folder: RunDir, recipe: Recipe, family: Family, training: Training) -> None:
    """Save the checkpoint and the adapter of this step and leave."""
    path = save_checkpoint(training, folder.checkpoints, keep=recipe.checkpoint.keep)
    _save_adapter(folder, recipe, family, training.adapter)
    raise Interrupted(
        f"Stopped at step {training.index} of {training.steps}: {path} and {results(folder)[0]} are saved.",
        f"Continue with: limner train --resume {folder.path}",
    )


def _logged(step: SlotStep) -> dict[str, Any]:
    return {
        "loss": step.loss, "instance_loss": step.instance_loss, "prior_loss": step.prior_loss,
        "lr": step.learning_rate, "grad_norm": step.grad_norm, "skipped": step.skipped,
    }  # fmt: skip


def _check(paths: Sequence[Path], recipe: Recipe, watch: Watch) -> Checked:
    """Check the pictures at the resolution of the base, before its weights are loaded."""
    if not recipe.pictures.subjects:
        find_pictures(paths)  # says what is wrong with the folder before the base is looked for, perhaps on the hub
    resolution_px = recipe.resolution or native_resolution(recipe.base)
    checked = check_pictures(
        paths, recipe.pictures, resolution_px=resolution_px, cache=default_cache(), progress=watch.progress
    )
    for note in checked.notes:
        watch.say(note)
    _plan(recipe, checked, 0, Watch())  # refuses a length given twice
    return checked


def _save_adapter(folder: RunDir, recipe: Recipe, family: Family, adapter: Attached) -> None:
    """Write the result, verified, and count what it trains."""
    files = write_result(folder, recipe, family, adapter)
    trained = adapter.trainable_parameters()
    in_base = sum(p.numel() for p in family.unet.parameters())
    folder.update_provenance(
        base={"name": recipe.base, "family": family.kind, "identity": family.identity},
        adapter={"kind": recipe.adapter.kind, "trainable_parameters": trained, "base_parameters": in_base,
                 "times_fewer": in_base / trained, "files": [file.name for file in files],
                 "file_bytes": sum(_bytes(file) for file in files if file != folder.single_file)},
    )  # fmt: skip


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def _words(recipe: Recipe, checked: Checked) -> dict[str, str]:
    """Return the subjects' tokens, each with the noun that describes it."""
    if not recipe.pictures.subjects:
        return {recipe.pictures.token: recipe.pictures.class_noun or "thing"}
    own = [spec_of(subject, recipe.pictures) for subject in dict.fromkeys(e.picture.subject for e in checked.examples)]
    return {spec.token: spec.class_noun or "thing" for spec in own}


def _scores(folders: Sequence[RunDir]) -> Path:
    """Return where the scores of a run lie, or those of several side by side."""
    first = folders[0]
    return first.scores if len(folders) == 1 else first.path.parent / "comparison.json"


def _paths(given: Paths) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(p) for p in given]


def _recipe_name(recipe: str | Path | Recipe) -> str:
    return "run" if isinstance(recipe, Recipe) else Path(recipe).stem
