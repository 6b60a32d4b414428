"""The evaluate stage: one run or several in, scores out."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError
from limner.evaluate.claims import corrected, differences
from limner.evaluate.encoders import Panel, panel_of
from limner.evaluate.images import TUNED, Arm, ArmImage, check_runs, read_arms, read_masks, read_pictures
from limner.evaluate.look import Progress, Seen, look, look_apart
from limner.evaluate.names import Setting, arm_names, read_recipe, settings_apart
from limner.evaluate.statistics import DRAWS, interval, rate_interval
from limner.evaluate.table import COLUMNS, as_csv, value_rows
from limner.metrics.encoder import ImageEncoder, PatchEncoder, TextImageEncoder
from limner.metrics.metric import Metric, Question, View
from limner.metrics.perceptual import Lpips
from limner.metrics.questions import PERCEIVED_DIVERSITY
from limner.metrics.scores import ArmScore, Design, EncoderInfo, ImageValue, MetricScore, RunInfo, Scores
from limner.metrics.standard import standard_metrics
from limner.rundir import RunDir, write_atomically, write_json


@dataclass(frozen=True)
class Material:
    """What is compared: every arm's images, pictures of the subject and of others of the class."""

    arms: tuple[Arm, ...]
    """The base first."""
    subject: tuple[Path, ...]
    class_pictures: tuple[Path, ...]
    held_out: tuple[Path, ...]
    masks: dict[Path, Path]
    """The mask of each training picture that has one."""
    others: dict[str, tuple[Path, ...]]
    """Pictures of other subjects, by their name."""

    def paths(self) -> list[Path]:
        """Return every picture that is to be seen."""
        images = [image.path for arm in self.arms for image in arm.images]
        others = [path for paths in self.others.values() for path in paths]
        return [*images, *self.subject, *self.class_pictures, *self.held_out, *others]


def evaluate(
    runs: Sequence[RunDir] | Mapping[str, RunDir],
    out: Path,
    *,
    panel: Panel | None = None,
    encoders: Sequence[ImageEncoder] | None = None,
    metrics: Sequence[Metric] | None = None,
    seed: int = 0,
    batch: int = 32,
    progress: Progress = lambda done, total, what: None,
) -> Scores:
    """Score the tuned arm of each run against the base and against one another; write `out` and a .csv, return it.

    A mapping names the arms; else they are called after their methods. `panel` says who judges what; without it those
    judge that fit the base. `encoders` and `metrics` take the place of the panel's.

    Raises:
        UserError: images are missing, or arms were made in a way that forbids a comparison.
    """
    names = list(runs) if isinstance(runs, Mapping) else []
    runs = list(runs.values()) if isinstance(runs, Mapping) else runs
    recipes = [read_recipe(run) for run in runs]
    material = _gather(runs, names or (arm_names(recipes) if len(runs) > 1 else [TUNED]))
    if encoders is not None:
        panel = Panel(tuple(encoders), tuple(standard_metrics(encoders) if metrics is None else metrics))
    panel = panel or panel_of(material.arms[0].base)
    judges = {judge.name: judge for judge in (*panel.encoders, *panel.distances)}
    seen = _look(panel, material, batch, progress)
    taken: list[MetricScore] = []
    skipped = dict(panel.absent)
    for metric in panel.metrics:
        judge = judges.get(metric.encoder)
        reason = _why_not(metric.question, material, judge) if judge else f"no encoder named {metric.encoder} was given"
        if reason:
            skipped[metric.key] = reason
        else:
            is_first = all(score.kind != metric.question.kind for score in taken)
            taken.append(_score(metric, material, seen[metric.encoder], seed, is_first=is_first))
    scores = Scores(
        design=_design(material, settings_apart(recipes), out.parent, seed),
        encoders=tuple(EncoderInfo(name=e.name, identity=e.identity, about=e.about) for e in judges.values()),
        metrics=corrected(taken),
        skipped=skipped,
    )
    rows = value_rows(scores, out.parent, out.parent)
    write_atomically(out.with_suffix(".csv"), as_csv(COLUMNS, rows).encode())
    write_json(out, scores.model_dump(mode="json"))
    return scores


def _look(panel: Panel, material: Material, batch: int, progress: Progress) -> dict[str, Seen]:
    """Show every picture and every prompt to everyone who judges."""
    paths = material.paths()
    prompts = [image.plain_prompt for arm in material.arms for image in arm.images]
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for arm in material.arms:
        for image in _rows(PERCEIVED_DIVERSITY, arm):
            groups[arm.name, image.prompt_key].append(image.path)
    return {
        e.name: look(e, paths, prompts, masks=material.masks, batch=batch, progress=progress) for e in panel.encoders
    } | {d.name: look_apart(d, paths, list(groups.values()), progress=progress) for d in panel.distances}


def _gather(runs: Sequence[RunDir], names: Sequence[str]) -> Material:
    """Read what the runs hold; class pictures, held-out and other subjects' are those of the first run that has any."""
    check_runs(runs)
    arms = read_arms(runs, names)
    subject = read_pictures(runs[0].sitter)
    if not subject:
        raise UserError(f"{runs[0].sitter}: holds no training pictures.", "Make them with: limner train PICTURES")
    class_pictures = (read_pictures(run.class_pictures) for run in runs)
    held_out = (read_pictures(run.held_out) for run in runs)
    others = ({folder.name: read_pictures(folder) for folder in sorted(run.distractors.glob("*/"))} for run in runs)
    return Material(
        arms=arms,
        subject=subject,
        class_pictures=next(filter(None, class_pictures), ()),
        held_out=next(filter(None, held_out), ()),
        masks=read_masks(runs[0].sitter),
        others=next(filter(None, others), {}),
    )


def _why_not(question: Question, material: Material, judge: ImageEncoder | Lpips) -> str:
    """Return why a question cannot be put to one who judges, or nothing."""
    rows = _rows(question, material.arms[0])
    if question.needs_text and not isinstance(judge, TextImageEncoder):
        return f"{judge.name} reads no text"
    if question.needs_masks and not isinstance(judge, PatchEncoder):
        return f"{judge.name} sees no parts of a picture"
    if question.needs_masks and not material.masks:
        return "no training picture has a mask (NAME-mask.png beside NAME.jpg)"
    if question.needs_others and not material.others:
        return "there are no pictures of other subjects (evaluation.distractors=FOLDER, with a folder for each)"
    if not rows:
        return f"no images were made for the prompts of: {', '.join(question.sets)}"
    if len(rows) < question.least_images:
        return f"it takes {question.least_images:,} images of each arm, and there {_is(len(rows))}"
    if len(material.subject) < question.least_pictures:
        return f"it takes {question.least_pictures} training pictures, and there {_is(len(material.subject))}"
    if min(Counter(row.prompt_key for row in rows).values()) < question.least_images_per_prompt:
        return f"it takes {question.least_images_per_prompt} images of each prompt"
    return ""


def _is(count: int) -> str:
    return f"is {count}" if count == 1 else f"are {count}"


def _score(metric: Metric, material: Material, seen: Seen, seed: int, *, is_first: bool) -> MetricScore:
    """Take one metric for every arm, and the paired differences of every two arms; the first of a kind may claim."""
    question = metric.question
    base = _rows(question, material.arms[0])
    prompts = [row.prompt_key for row in base]
    views = {arm.name: _view(_rows(question, arm), base, material, seen) for arm in material.arms}
    values = {name: question.per_image(view).double().numpy() for name, view in views.items()}
    levels = metric.levels(views[material.arms[0].name])
    limit = next((level.value for level in levels if level.is_limit), None)
    arms = {
        arm.name: ArmScore(
            score=(rate_interval if question.is_rate else interval)(values[arm.name], prompts, seed=seed),
            beyond_limit=None if limit is None else int((values[arm.name] > limit).sum()),
            images=tuple(
                ImageValue(file=str(row.path.relative_to(arm.run.path)), prompt=row.prompt_key, value=float(value))
                for row, value in zip(_rows(question, arm), values[arm.name], strict=True)
            ),
        )
        for arm in material.arms
    }
    return MetricScore(
        key=metric.key,
        kind=question.kind,
        encoder=metric.encoder,
        title=question.title,
        says=question.says,
        better=question.better,
        sets=question.sets,
        relative_to_base=question.relative_to_base,
        levels=levels,
        is_claimed=question.is_claimed and is_first,
        arms=arms,
        differences=differences(question, values, prompts, seed=seed),
    )


def _view(rows: list[ArmImage], base: list[ArmImage], material: Material, seen: Seen) -> View:
    return View(
        images=seen.rows([row.path for row in rows]),
        base=seen.rows([row.path for row in base]),
        prompt=tuple(row.prompt_key for row in rows),
        subject=seen.rows(material.subject),
        class_pictures=seen.rows(material.class_pictures),
        text=seen.text_rows([row.plain_prompt for row in rows]),
        held_out=seen.rows(material.held_out) if material.held_out else None,
        others=tuple(seen.rows(paths) for paths in material.others.values()),
        foreground=seen.foreground_rows([row.path for row in rows]),
        own_foreground=seen.foreground_rows(list(material.masks)),
    )


def _rows(question: Question, arm: Arm) -> list[ArmImage]:
    return [image for image in arm.images if image.set in question.sets]


def _design(material: Material, apart: Sequence[dict[str, Setting]], folder: Path, seed: int) -> Design:
    """Return what was compared; `folder` is where the scores will lie."""
    base, *tuned = material.arms
    sets = Counter(image.set for image in base.images)
    runs = {
        arm.name: RunInfo(
            name=arm.run.path.resolve().name,
            folder=os.path.relpath(arm.run.path.resolve(), folder.resolve()),
            settings=settings,
        )
        for arm, settings in zip(tuned, apart, strict=True)
    }
    return Design(
        arms=tuple(arm.name for arm in material.arms),
        runs=runs,
        prompts={name: len({image.prompt_index for image in base.images if image.set == name}) for name in sets},
        images=dict(sets),
        training_pictures=len(material.subject),
        held_out_pictures=len(material.held_out),
        class_pictures=len(material.class_pictures),
        masked_pictures=len(material.masks),
        distractors={name: len(paths) for name, paths in material.others.items()},
        settings=base.settings,
        seed=seed,
        draws=DRAWS,
    )
