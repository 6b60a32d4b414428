"""The sweep of settings: a grid of variants trains in slots of one base, each is judged, and one of them is taken."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner.entrants import Entrants, enter, take_slots
from limner.errors import Guarded, Interrupted, UserError
from limner.evaluate.sweep import Choice, choose
from limner.files import bytes_of, remove, replacing, require_writable
from limner.files import sweep as tidy
from limner.lock import locked
from limner.many import go_on, is_many, train_entrants
from limner.metrics.course import Course
from limner.metrics.questions import SUBJECT_FIDELITY
from limner.metrics.scores import Interval
from limner.metrics.sweep import Sweep, Swept
from limner.recipe import load_recipe, words_of_settings
from limner.report.sweep import report_sweep, table
from limner.result import results
from limner.resuming import require_made_alike
from limner.run import paths_of
from limner.rundir import UNBEGUN, RunDir, read_json, write_json
from limner.validating import read_course
from limner.variants import Variant, grid, values_in
from limner.watch import Watch

PLAN, FOUND, RUNS, TAKEN = "plan.json", "sweep.json", "runs", "taken"
NEVER = 10**6
"""Steps between validations where only the base and the last step are judged, and the length is not given in steps."""
NO_AXES = {
    "pictures.token": "Variants are judged on the same prompts.",
    "pictures.class_noun": "Variants are judged on the same prompts.",
    "resolution": "Pictures of different sizes are not judged side by side.",
    "evaluation.": "It says what is compared.",
    "validation.": "It says what the variants are judged by.",
    "preview.": "It changes nothing in the result.",
    "checkpoint.": "It changes nothing in the training.",
}
"""Settings that variants cannot be compared in, and why."""


@dataclass(frozen=True)
class Found:
    """What a sweep has made."""

    path: Path
    page: Path
    sweep: Sweep
    run: RunDir | None
    """The run of the variant that is taken; None where no choice can be made."""
    adapter: Path | None
    """A copy of its adapter, in the sweep's own folder."""


def sweep(
    pictures: str | Path | Sequence[str | Path],
    axes: Mapping[str, Sequence[Any]],
    *,
    recipe: str | Path = "lora",
    settings: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    watch: Watch | None = None,
) -> Found:
    """Train every combination of the values of `axes`, judge each on the recipe's validation prompts, and take one.

    {"adapter.rank": [4, 8, 16], "learning_rate": [1e-4, 3e-4]} are six variants, which train as slots of one batch.
    `settings` go to all, but for `slots`. The folder `run` gets their runs, sweep.json, a page, and the adapter that is
    taken. What is there already is not done again, and what was broken off goes on.

    Raises:
        UserError: something that the user can mend, found before anything is loaded.
        Interrupted: Ctrl-C; the same call goes on.
    """
    watch, shared, paths = watch or Watch(), dict(settings or {}), paths_of(pictures)
    slots = take_slots(shared)
    variants = _variants(axes, paths)
    folder = Path(run or Path("runs") / f"sweep-{paths[0].resolve().name}")
    _require_sweep(folder)
    judged = [_to_be_judged(one, recipe, shared) for one in variants]
    entrants = enter(judged, recipe, shared, slots, watch)
    _require_same(folder, entrants)
    require_writable(folder, "Name another folder with --run.")
    with locked(folder), _naming_the_way_on():
        write_json(folder / PLAN, {**_known(folder), "variants": [one.name for one in variants]})
        broken = _train(folder, entrants, watch)
        with watch.phase("judge"):
            found = _judge(folder, variants, broken, recipe, shared)
            write_json(folder / FOUND, found.model_dump(mode="json"))
            adapter = _keep_taken(folder, found)
            page = report_sweep(folder / FOUND)
        for line in (*table(found), *found.words, f"the same again: {found.command}" if found.command else ""):
            if line:
                watch.say(line)
    taken = RunDir(folder / found.variants[found.taken].run) if found.taken else None
    return Found(folder, page, found, taken, adapter)


def split_axes(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the settings that have several values between commas, and the other words; a text is one value."""
    axes: dict[str, list[str]] = {}
    others: list[str] = []
    for word in words:
        key, _, text = word.partition("=")
        values = values_in(text)
        if len(values) > 1 and all(value[:1] in ("[", '"') or " " not in value for value in values):
            if key in axes:
                raise UserError(f"{key}: is there twice.", "Give all its values at once.")
            axes[key] = values
        else:
            others.append(word)
    return axes, others


def _variants(axes: Mapping[str, Sequence[Any]], paths: Sequence[Path]) -> list[Variant]:
    """Return a variant for each combination, none of which is judged on other pictures than the others."""
    told = {key: [str(v).lower() if isinstance(v, bool) else str(v) for v in values] for key, values in axes.items()}
    for key, values in told.items():
        why = next((why for name, why in NO_AXES.items() if key == name or key.startswith(name)), None)
        if why:
            raise UserError(f"sweep: variants cannot differ in {key}. {why}", "Give it one value.")
        if "" in values or len(set(values)) < len(values):
            raise UserError(f"sweep: {key}={','.join(values)} has a value twice, or an empty one.", "Give each once.")
    variants = grid(told, paths, "sweep")
    if len(variants) < 2:
        raise UserError("sweep: no setting has several values.", "Write them with commas: adapter.rank=4,8,16")
    return variants


def _to_be_judged(one: Variant, recipe: str | Path, shared: Mapping[str, Any]) -> Variant:
    """Return a variant with a validation of its last step, where its recipe has none."""
    plain = load_recipe(recipe, {key: value for key, value in {**shared, **one.settings}.items()
                                 if not key.startswith("validation.")})  # fmt: skip
    every = shared.get("validation.every_steps", plain.validation.every_steps)
    if plain.checkpoint.choose == "loss":
        raise UserError("checkpoint.choose=loss: variants are judged by their pictures.", "Use last or evidence.")
    return one if every else replace(one, settings={**one.settings, "validation.every_steps": plain.steps or NEVER})


def _require_sweep(folder: Path) -> None:
    """Refuse a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, and a sweep is a folder.", "Name another with --run.")
    if folder.is_dir():
        tidy(folder)
        if not (folder / PLAN).is_file() and {file.name for file in folder.iterdir()} - UNBEGUN:
            raise UserError(f"{folder}: is not empty, and is no sweep.", "Name another with --run.")


def _known(folder: Path) -> dict[str, Any]:
    return read_json(folder / PLAN) if (folder / PLAN).is_file() else {}


def _require_same(folder: Path, entrants: Entrants) -> None:
    """Refuse a sweep that was begun with other variants or settings."""
    if not is_many(folder / RUNS):
        return
    then, now = _known(folder).get("variants", []), list(entrants.recipes)
    if then != now:
        other = next(iter([name for name in then if name not in now] or [name for name in now if name not in then]), "")
        raise UserError(f"{folder}: was begun with other variants ({len(then)}, now {len(now)}; one is {other}).",
                        "Name another folder with --run.")  # fmt: skip
    for name, recipe in entrants.recipes.items():
        require_made_alike(RunDir(folder / RUNS / name), recipe)


def _train(folder: Path, entrants: Entrants, watch: Watch) -> dict[str, str]:
    """Train what is not there yet, and go on with what was broken off; return why which variants broke."""
    known = _known(folder)
    if "broken" in known:
        return known["broken"]
    runs = folder / RUNS
    if is_many(runs):
        many, _ = go_on(runs, {"slots": entrants.slots} if entrants.slots else {}, watch)
    else:
        remove(runs)  # nothing was learned before the list of runs was written
        many = train_entrants(entrants, runs, "", watch)
    broken = {one.name: one.error.message for one in many.ended if isinstance(one.error, Guarded)}
    if any(one.error and not isinstance(one.error, Guarded) for one in many.ended) or len(broken) == len(many.ended):
        many.require_all()
    write_json(folder / PLAN, {**known, "broken": broken})
    return broken


def _judge(
    folder: Path, variants: Sequence[Variant], broken: Mapping[str, str], recipe: str | Path, shared: Mapping[str, Any]
) -> Sweep:
    """Compare what the validations of all runs found at the step of each one's result, and choose."""
    judged: dict[str, tuple[Course, int]] = {}
    missing: dict[str, str] = dict(broken)
    for one in variants:
        run = RunDir(folder / RUNS / one.name)
        course, step = read_course(run), read_json(run.provenance).get("chosen", {}).get("step")
        if one.name in broken:
            continue
        if course and step in course.steps and any(c.kind == SUBJECT_FIDELITY.kind for c in course.curves):
            judged[one.name] = (course, step)
        else:
            missing[one.name] = f"its step {step} was not judged; {run.log} says why"
    if not judged:
        raise UserError(f"{folder}: no variant was judged ({next(iter(missing.values()))}).", "Train again elsewhere.")
    if len({course.key for course, _ in judged.values()}) > 1:
        raise UserError(f"{folder}: the variants were judged on different prompts or bases.", "Train again elsewhere.")
    choice = choose(judged)
    first = RunDir(folder / RUNS / choice.order[0])
    own = load_recipe(first.recipe)
    by_name = {one.name: one for one in variants}
    words = list(choice.words)
    if missing:
        words.insert(1, "Not judged: " + "; ".join(f"{name} ({why})" for name, why in missing.items()) + ".")
    return Sweep(
        base=own.base, images_per_prompt=own.validation.images_per_prompt,
        prompts={"subject": len(own.validation.prompts), "class": len(own.validation.class_prompts)},
        variants={name: _swept(folder, by_name[name], choice, judged, missing) for name in (*choice.order, *missing)},
        metrics=choice.metrics, taken=choice.taken, words=tuple(words),
        command=_command(by_name[choice.taken], recipe, shared) if choice.taken else None,
    )  # fmt: skip


def _swept(
    folder: Path,
    one: Variant,
    choice: Choice,
    judged: Mapping[str, tuple[Course, int]],
    missing: Mapping[str, str],
) -> Swept:
    run = RunDir(folder / RUNS / one.name)
    files, is_judged = results(run), one.name in judged
    to_taken: Interval | None = choice.to_taken.get(one.name)
    return Swept(
        settings=dict(one.words or {}),
        run=f"{RUNS}/{one.name}",
        step=judged[one.name][1] if is_judged else None,
        seconds=read_json(run.provenance)["chosen"]["seconds"] if is_judged else None,
        bytes=sum(map(bytes_of, files)) if is_judged else None,
        to_taken=to_taken,
        standing=choice.standing.get(one.name, "not compared"),
        why_not=missing.get(one.name, ""),
    )


def _command(one: Variant, recipe: str | Path, shared: Mapping[str, Any]) -> str:
    """Return the command that trains a variant by itself."""
    own = {key: value for key, value in {**shared, **one.settings}.items() if not key.startswith("validation.")}
    judged = {key: value for key, value in shared.items() if key.startswith("validation.")}
    if load_recipe(recipe, shared).checkpoint.choose == "evidence":
        own |= judged
    named = [] if str(recipe) == "lora" else ["--recipe", str(recipe)]
    return shlex.join(["limner", "train", *map(str, one.pictures), *named, *words_of_settings(own)])


def _keep_taken(folder: Path, found: Sweep) -> Path | None:
    """Copy the adapter that is taken to where it is easily found; return its file."""
    place = folder / TAKEN
    if found.taken is None:
        remove(place)
        return None
    files = results(RunDir(folder / found.variants[found.taken].run))
    with replacing(place) as new:
        new.mkdir()
        for file in files:
            shutil.copy2(file, new / file.name)
    return place / files[0].name


@contextmanager
def _naming_the_way_on() -> Iterator[None]:
    """Say of every stop that the same command goes on."""
    hint = "What is finished stays; the same command goes on."
    try:
        yield
    except (Interrupted, Guarded) as error:
        raise type(error)(error.message, hint) from error
    except KeyboardInterrupt:
        raise Interrupted("Stopped.", hint) from None
