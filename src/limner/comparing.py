"""The comparison of methods: arms x subjects x training seeds are trained, drawn, scored and put side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.arms import BASE, Arm, Subject, check_arms, parse_arms, subjects_of
from limner.budgets import measure, read_budget, seconds_of
from limner.drawing import draw_comparison
from limner.errors import Guarded, Interrupted, UserError
from limner.evaluate.study import evaluate_study
from limner.families.source import locate
from limner.files import Need, bytes_of, remove, require_room, require_writable, sweep
from limner.fitting import make_fit
from limner.forecast import forecast
from limner.lock import locked
from limner.machine import place
from limner.metrics.study import ArmBudget, Budget
from limner.planning import known_pace, plan_run
from limner.prepare.check import Checked
from limner.ranks import Ranks
from limner.recipe import Recipe, load_recipe
from limner.refining import suited
from limner.report.numbers import in_time
from limner.report.report import report
from limner.report.study import report_study
from limner.result import results
from limner.resuming import require_made_alike
from limner.run import check, resume, train
from limner.rundir import UNBEGUN, RunDir, read_json, write_json
from limner.scoring import score
from limner.watch import Watch

ARMS = "base,lora,dreambooth,dreambooth-lora,textual-inversion"
PLAN, SCORES, STUDY = "compare.json", "comparison.json", "study.json"
LARGEST = 30
"""No run leaves more than so many times the bytes of its base: below that nothing is counted."""


@dataclass(frozen=True)
class OneTraining:
    """One arm of one subject with one training seed."""

    arm: Arm
    subject: Subject
    seed: int
    recipe: Recipe
    steps: int
    folder: RunDir

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        return f"{self.arm.name} on {self.subject.name}, seed {self.seed}"

    @property
    def is_done(self) -> bool:
        """Tell whether its result is there."""
        known = read_json(self.folder.provenance) if self.folder.provenance.is_file() else {}
        chosen = known.get("chosen", {})
        is_trained = chosen.get("trained_steps") == self.steps or chosen.get("is_early", False)
        return is_trained and bool(results(self.folder))


def compare(
    pictures: str | Path | Sequence[str | Path] = (),
    *,
    arms: str = ARMS,
    subjects: str | Path | None = None,
    seeds: Sequence[int] = (0,),
    run: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train every arm on every subject with every seed, draw the same prompts, score them; return the page.

    `arms` are recipes: "lora,dreambooth[prior.enabled=false],mine.toml". `pictures` show one subject; `subjects` is a
    folder of folders named "TOKEN CLASS". `settings` go to every arm, but for `budget` ("steps", "time", "memory") and
    `seconds`. What is there already in the folder `run` is not done again, and what was broken off goes on.

    Raises:
        UserError: something that the user can mend; all that can be known is checked before the first training.
        Interrupted: Ctrl-C; the same call goes on.
    """
    watch = watch or Watch()
    chosen = parse_arms(arms)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {','.join(map(str, seeds))}: names a seed twice.", "Name each once.")
    given = [Path(pictures)] if isinstance(pictures, str | Path) else [Path(p) for p in pictures]
    people = subjects_of(given, Path(subjects) if subjects else None)
    budget, shared = read_budget(settings or {}, chosen)
    folder = Path(run or Path("runs") / f"compare-{Path(subjects or given[0]).resolve().name}")
    budget = _known_budget(folder, budget)
    is_new = not folder.exists()
    checked = _check(chosen, people, shared, budget, watch)
    if budget.kind != "time":
        _lay_out(folder, checked, seeds, shared, budget)  # refuses arms that were made otherwise
    require_writable(folder, "Name another folder with --run.")
    with locked(folder), _naming_the_way_on():
        asked = {"arms": [BASE, *(a.name for a in chosen)], "subjects": [s.name for s in people], "seeds": list(seeds)}
        try:
            write_json(folder / PLAN, {**asked, "budget": budget.model_dump(mode="json")})
            budget = _measured(folder, budget, checked, shared, watch)
            trainings = _lay_out(folder, checked, seeds, shared, budget)
            _require_room(trainings, checked)
        except UserError:
            if is_new:
                remove(folder)
            raise
        budget = budget.model_copy(update={"arms": {**budget.arms, **_paced(trainings, budget)}})
        write_json(folder / PLAN, {**asked, "budget": budget.model_dump(mode="json")})
        _train_all(trainings, watch)
        cells = _score_all(trainings, watch)
        with watch.phase("study"):
            evaluate_study(cells, folder / STUDY, budget=budget)
            return report_study(folder / STUDY)


Looked = dict[tuple[Arm, Subject], Checked]


class _Prefixed(Watch):
    """Says in front of each phase which training it is of; a line that several trainings say is said once."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._said, self.prefix = watch, set[str](), ""

    def begin(self, phase: str) -> None:
        self._watch.begin(self.prefix + phase)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._watch.progress(done, total, note)

    def end(self) -> None:
        self._watch.end()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._watch.say(text)


class _Lines(_Prefixed):
    """Passes on lines alone."""

    def begin(self, phase: str) -> None: ...
    def progress(self, done: int, total: int, note: str = "") -> None: ...
    def end(self) -> None: ...


def _known_budget(folder: Path, asked: Budget) -> Budget:
    """Return the budget with what was measured for it before; refuse a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, and a comparison is a folder.", "Name another with --run.")
    if not (folder / PLAN).is_file():
        if folder.is_dir() and {file.name for file in folder.iterdir()} - UNBEGUN:
            raise UserError(f"{folder}: is not empty, and is no comparison.", "Name another with --run.")
        return asked
    sweep(folder)
    known = Budget.model_validate(read_json(folder / PLAN)["budget"])
    if (known.kind, known.amount) != (asked.kind, asked.amount):
        then, now = (f"budget={b.kind} {b.amount}".strip() if b.kind != "own" else "no budget" for b in (known, asked))
        raise UserError(f"{folder}: was made with {then}, and {now} is asked for.", "Name another folder with --run.")
    return known


def _check(
    arms: Sequence[Arm], subjects: Sequence[Subject], shared: Mapping[str, Any], budget: Budget, watch: Watch
) -> Looked:
    """Check every arm, every folder of pictures, memory and encoders before anything is made."""
    lines = _Lines(watch)
    for line in check_arms(arms, subjects[0], shared):
        lines.say(line)
    found: Looked = {}
    with watch.phase("check"):
        for subject in subjects:
            for arm in arms:
                recipe = _recipe(arm, subject, shared, 0, budget)
                with _naming(f"{subject.name}, arm {arm.name}"):
                    place(recipe.device, recipe.precision)
                    found[arm, subject] = looked = check(list(subject.pictures), recipe=recipe, watch=lines)
                    if subject is subjects[0]:
                        make_fit(recipe, looked, Watch(), Ranks())
                watch.progress(len(found), len(arms) * len(subjects))
    return found


def _recipe(arm: Arm, subject: Subject, shared: Mapping[str, Any], seed: int, budget: Budget) -> Recipe:
    own = {**subject.settings(arm, shared), "seed": seed}
    if budget.kind == "time" and arm.name in budget.arms:
        own["steps"] = budget.arms[arm.name].steps
    return suited(arm.load(own), Watch())


def _measured(folder: Path, budget: Budget, checked: Looked, shared: Mapping[str, Any], watch: Watch) -> Budget:
    """Return a budget of time with each arm's steps, measured on the first subject; any other budget as it is."""
    if budget.kind != "time":
        return budget
    measured = dict(budget.arms)
    for arm, subject in checked:
        if arm.name in measured:
            continue
        recipe = _recipe(arm, subject, shared, 0, budget)
        with _naming(f"arm {arm.name}, budget=time"):
            there = folder / ".pace"
            measured[arm.name] = one = measure(recipe, list(subject.pictures), seconds_of(budget), there, watch)
        pictures = f" after {one.class_seconds:.0f} s of class pictures" if one.class_seconds else ""
        watch.say(f"{arm.name}: {one.steps} steps of {one.step_seconds:.2g} s in {budget.amount}{pictures}")
    return budget.model_copy(update={"arms": measured})


def _lay_out(
    folder: Path, checked: Looked, seeds: Sequence[int], shared: Mapping[str, Any], budget: Budget
) -> list[OneTraining]:
    """Return every training in its order: subject by subject, seed by seed, arm by arm.

    Raises:
        UserError: one is there already, and was made with other settings.
    """
    arms, subjects = dict.fromkeys(arm for arm, _ in checked), dict.fromkeys(subject for _, subject in checked)
    trainings: list[OneTraining] = []
    for subject in subjects:
        for seed in seeds:
            for arm in arms:
                recipe = _recipe(arm, subject, shared, seed, budget)
                at = RunDir(folder / subject.name / f"seed-{seed}" / arm.folder)
                with _naming(f"arm {arm.name}"):
                    steps = plan_run(recipe, checked[arm, subject], 0, Watch()).steps
                trainings.append(OneTraining(arm, subject, seed, recipe, steps, at))
                require_made_alike(at, recipe)
    return trainings


def _require_room(trainings: Sequence[OneTraining], checked: Looked) -> None:
    """Refuse to begin when the disk has no room for all that will be trained."""
    coming = [training for training in trainings if not training.is_done]
    if not coming:
        return
    where = coming[0].folder.path.parents[2]
    base = sum(bytes_of(path) for one in coming if (path := locate(one.recipe.base)) and path.exists())
    try:
        require_room([Need(where, LARGEST * base, "runs")], "", "")
    except UserError:
        each: dict[Arm, int] = {}
        for one in coming:
            if one.arm not in each:
                at = place(one.recipe.device, one.recipe.precision)
                each[one.arm] = forecast(one.recipe, checked[one.arm, one.subject], one.steps, at).disk_bytes
        needs = [Need(one.folder.path, each[one.arm], "checkpoints and results") for one in coming]
        require_room(needs, str(where), "Free some, set checkpoint.keep=1, or name another folder with --run.")


def _paced(trainings: Sequence[OneTraining], budget: Budget) -> dict[str, ArmBudget]:
    """Return the steps of each arm, where the budget did not set them by a measured pace."""
    return {} if budget.kind == "time" else {t.arm.name: ArmBudget(steps=t.steps) for t in trainings}


def _train_all(trainings: Sequence[OneTraining], watch: Watch) -> None:
    """Train what is not there yet, and go on with what was broken off."""
    coming = [training for training in trainings if not training.is_done]
    watch.say(_plan_line(trainings, coming))
    prefixed = _Prefixed(watch)
    for number, training in enumerate(trainings, start=1):
        if training not in coming:
            continue
        watch.say(f"{number} of {len(trainings)}: {training.name}, {training.steps} steps")
        prefixed.prefix = f"{number} of {len(trainings)} "
        for old in (SCORES, Path(SCORES).with_suffix(".html")):
            remove(training.folder.path.parent / old)
        with _naming(training.name):
            if training.folder.recipe.is_file():
                resume(training.folder.path, watch=prefixed)
            else:
                train(list(training.subject.pictures), recipe=training.recipe, run=training.folder.path, watch=prefixed)


def _plan_line(trainings: Sequence[OneTraining], coming: Sequence[OneTraining]) -> str:
    """Return what there is to do, in one line."""
    arms, subjects, seeds = (len({getattr(t, n) if n == "seed" else getattr(t, n).name for t in trainings})
                             for n in ("arm", "subject", "seed"))  # fmt: skip
    paces = [(known_pace(t.recipe), t.steps) for t in coming]
    known = [pace * steps for pace, steps in paces if pace is not None]
    time = f"about {in_time(math.fsum(known))} of training, by the last such runs here"
    if len(known) < len(coming):
        time = f"{time} for {len(known)} of them" if known else "time: after the first of them"
    there = f", {len(trainings) - len(coming)} there already" if len(coming) < len(trainings) else ""
    what = f"{arms} arms × {subjects} subjects × {seeds} seeds = {len(trainings)} trainings{there}"
    return f"{what}; {time}" if coming else what


def _score_all(trainings: Sequence[OneTraining], watch: Watch) -> dict[tuple[str, int], Path]:
    """Draw and score what is not scored yet; return the scores of each subject and seed."""
    cells: dict[tuple[str, int], list[OneTraining]] = {}
    for training in trainings:
        cells.setdefault((training.subject.name, training.seed), []).append(training)
    prefixed, found = _Prefixed(watch), dict[tuple[str, int], Path]()
    for number, (cell, own) in enumerate(cells.items(), start=1):
        prefixed.prefix = f"{number} of {len(cells)} "
        found[cell] = scores = own[0].folder.path.parent / SCORES
        folders = {training.arm.name: training.folder for training in own}
        if scores.is_file() and read_json(scores)["design"]["arms"] == [BASE, *folders]:
            continue
        with _naming(f"{cell[0]}, seed {cell[1]}"):
            recipes = [load_recipe(folder.recipe) for folder in folders.values()]
            for folder, recipe in zip(folders.values(), recipes, strict=True):
                draw_comparison(folder, recipe, prefixed)
            with prefixed.phase("evaluate"):
                score(folders, recipes, scores, prefixed)
            with prefixed.phase("report"):
                report(list(folders.values()), scores, scores.with_suffix(".html"))
    return found


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say in front of an error which part of the comparison it is about."""
    try:
        yield
    except (Interrupted, Guarded) as error:
        raise type(error)(f"{what}: {error.message}", error.hint) from error
    except UserError as error:
        raise UserError(f"{what}: {error.message}", error.hint) from error


@contextmanager
def _naming_the_way_on() -> Iterator[None]:
    """Say of every stop that the same command goes on."""
    hint = "What is finished stays; the same command goes on."
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.message, hint) from error
    except KeyboardInterrupt:
        raise Interrupted("Stopped.", hint) from None
