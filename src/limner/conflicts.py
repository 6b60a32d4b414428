"""Settings that contradict one another, or do nothing in this run: found before anything is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.adapters.peft import Peft
from limner.adapters.textual_inversion import TextualInversion
from limner.errors import UserError
from limner.evaluate.statistics import LEAST_UNITS
from limner.families.decoder import check_decoder
from limner.families.family import refuse_pure_noise
from limner.families.recognise import recognise, refuse_unsupported
from limner.fast import check_fast
from limner.generate.draw import require_multiple
from limner.objectives import Consistency
from limner.prepare.check import Checked
from limner.recipe import Recipe
from limner.refining import check_partner
from limner.spec import Spec
from limner.train.trackers import require_trackers

PLACEHOLDERS = {
    "pictures.caption": ("token", "class_noun"),
    "pictures.templates": ("token", "class_noun"),
    "pictures.prefix": ("token", "class_noun"),
    "prior.prompts": ("class_noun", "token"),
    "preview.prompt": ("subject",),
    "validation.prompts": ("subject", "class_noun"),
    "validation.class_prompts": ("class_noun",),
    "evaluation.prompts": ("subject", "class_noun"),
    "evaluation.class_prompts": ("class_noun",),
    "evaluation.other_prompts": (),
}
"""The words in braces that are filled in, by setting; any other would be learned or drawn as it stands."""


def check_settings(
    recipe: Recipe, *, given: Mapping[str, Any] | None = None, own_file: bool = False, class_pictures: bool = False
) -> list[str]:
    """Refuse settings that contradict one another; return a line for each that the user's file has in vain.

    `given` are the settings of the command line: one of these that does nothing is refused. `own_file` says that the
    recipe is the user's own file, and `class_pictures` that a folder of them is given.

    Raises:
        UserError: a contradiction, a prompt that would not be filled in, or a given setting without effect.
    """
    _check_words(recipe)
    _check_prompts(recipe)
    _check_learning(recipe)
    _check_prior(recipe)
    _check_consistency(recipe)
    _check_checkpoint(recipe)
    _check_validation(recipe)
    _check_nameless(recipe)
    check_fast(recipe)
    require_trackers(recipe.tracking)
    idle = dict(without_effect(recipe, class_pictures=class_pictures))
    refuse_idle(given or {}, idle)
    written = set(_written(recipe)) if own_file else set[str]()
    lines = [f"{name} has no effect, because {why}" for name, why in idle.items() if name in written]
    count, prompts = recipe.prior.count, recipe.prior.prompts
    if recipe.prior.active and not class_pictures and count < len(prompts):
        lines.append(f"prior.count={count}: only the first {count} of {len(prompts)} prior.prompts get a class picture")
    return lines


def refuse_idle(given: Iterable[str], idle: Mapping[str, str]) -> None:
    """Refuse settings of the command line that do nothing beside the others; `idle` says why, by name."""
    for name in given:
        if name in idle:
            raise UserError(f"{name}: has no effect, because {idle[name]}.", "Leave it out, or change the other.")


def refuse_idle_everywhere(given: Mapping[str, Any], idle: Sequence[Mapping[str, str]], what: str) -> None:
    """Refuse settings of several runs that do nothing in any of them; `idle` says why, for each run by name."""
    for name in given:
        if all(name in one for one in idle):
            raise UserError(f"{name}: has no effect in any {what}, because {idle[0][name]}.", "Leave it out.")


def require_use(given: Iterable[str], sections: tuple[str, ...], verb: str) -> None:
    """Refuse settings of the command line that a verb has no use for; `sections` are those that it has."""
    for name in given:
        if name.partition(".")[0] not in sections:
            raise UserError(f"{name}: has no effect on {verb}.", f"Leave it out; of use are {', '.join(sections)}.")


def without_effect(recipe: Recipe, *, class_pictures: bool = False) -> Iterator[tuple[str, str]]:
    """Yield every setting that does nothing beside the others of a recipe, and why."""
    prior, preview, pictures, optimizer = recipe.prior, recipe.preview, recipe.pictures, recipe.optimizer
    rules: list[tuple[bool, str, str]] = [
        (not prior.enabled, "prior.enabled is false", "prior.weight prior.count prior.prompts"),
        (prior.enabled and not prior.weight, "prior.weight is 0", "prior.count prior.prompts"),
        (class_pictures, "a folder of class pictures is given", "prior.count"),
        (not preview.every_steps, "preview.every_steps is 0", "preview.prompt preview.images preview.decoder"),
        (
            recipe.steps is not None and preview.every_steps > recipe.steps,
            f"the run has only {recipe.steps} steps",
            "preview.every_steps preview.prompt preview.images preview.decoder",
        ),
        (
            not recipe.validation.every_steps,
            "validation.every_steps is 0",
            "validation.prompts validation.class_prompts validation.images_per_prompt validation.patience",
        ),
        (
            not recipe.checkpoint.every_steps and recipe.checkpoint.keep > 1,
            "checkpoint.every_steps is 0, so there is one, at the end",
            "checkpoint.keep",
        ),
        (not pictures.shuffle_tags, "pictures.shuffle_tags is 0", "pictures.keep_first"),
        (pictures.captions_file is not None, "pictures.captions_file is read instead", "pictures.caption_ext"),
        (pictures.subjects, "pictures.subjects takes the tokens from the folders' names", "pictures.token"),
        (
            pictures.subjects,
            "a run of several subjects is not compared",
            " ".join(f"evaluation.{name}" for name in type(recipe.evaluation).model_fields),
        ),
        (optimizer.schedule != "cosine_restarts", f"optimizer.schedule is {optimizer.schedule}", "optimizer.cycles"),
        (optimizer.schedule != "polynomial", f"optimizer.schedule is {optimizer.schedule}", "optimizer.power"),
        *_distilling(recipe),
        (
            recipe.generation.guidance_scale == 1,
            "generation.guidance_scale is 1, which is off",
            "generation.negative_prompt generation.negative_aesthetic_score",
        ),
        (
            not recipe.generation.partner[1],
            "neither generation.refiner nor generation.begun_by is set",
            "generation.handover generation.aesthetic_score generation.negative_aesthetic_score",
        ),
        (
            not recipe.evaluation.class_prompts and not recipe.evaluation.other_prompts,
            "there are no class_prompts and no other_prompts",
            "evaluation.images_per_class_prompt",
        ),
        (
            isinstance(recipe.adapter, TextualInversion) and recipe.adapter.learning_rate is not None,
            "adapter.learning_rate is set",
            "learning_rate",
        ),
    ]
    yield from ((name, why) for holds, why, names in rules if holds for name in names.split())
    for section, adapter in (("adapter", recipe.adapter), ("adapter.lora", getattr(recipe.adapter, "lora", None))):
        if getattr(adapter, "text_encoder", None) is False:
            yield f"{section}.text_encoder_learning_rate", f"{section}.text_encoder is false"


def _distilling(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    """Yield when settings of few-step learning do nothing, why, and which."""
    own = recipe.distill
    names = " ".join(f"distill.{name}" for name in type(own).model_fields)
    yield not recipe.learns_few_steps, f"objective.kind is {recipe.objective.kind}", names
    yield not own.images, "pictures are given", "distill.prompts distill.words"
    yield own.prompts is not None, "distill.prompts is read instead", "distill.words"
    phases = recipe.objective.phases if isinstance(recipe.objective, Consistency) else 1
    yield phases > 1, f"objective.phases={phases} says how many steps are drawn", "distill.inference_steps"


def _check_words(recipe: Recipe) -> None:
    """Refuse a missing class noun where one is needed, and a token in the class pictures' prompt."""
    needs_noun = "{class_noun}" in recipe.pictures.caption and not recipe.learns_few_steps  # see require_captions
    needs_noun = needs_noun or recipe.prior.active
    if needs_noun and not recipe.pictures.class_noun and not recipe.pictures.subjects:
        raise UserError(
            "pictures.class_noun: is not set, and the captions need to say what the subject is.",
            'Add one word, such as pictures.class_noun=dog, or a caption of your own: pictures.caption="..."',
        )
    if recipe.prior.active:
        recipe.prior.captions(recipe.pictures)


def _check_prompts(recipe: Recipe) -> None:
    """Refuse words in braces that nothing fills in, and a comparison that does not show the subject."""
    for name, known in PLACEHOLDERS.items():
        section, _, field = name.partition(".")
        value = getattr(getattr(recipe, section), field)
        for text in (value,) if isinstance(value, str) else value:
            unknown = [word for word in re.findall(r"\{(\w*)\}", text) if word not in known]
            if unknown:
                close = difflib.get_close_matches(unknown[0], known, n=1) or known[:1]
                raise UserError(
                    f"{name}: {text!r} has {{{unknown[0]}}}, which nothing fills in.",
                    f"Did you mean {{{close[0]}}}?" if close else "Write it out.",
                )
    if not recipe.evaluation.prompts:
        raise UserError("evaluation.prompts: is empty, and the comparison is about them.", "Leave it out, or give one.")
    for section in ("evaluation", "validation") if recipe.has_subject else ("evaluation",):
        for prompt in getattr(recipe, section).prompts:
            if "{subject}" not in prompt:
                raise UserError(
                    f"{section}.prompts: {prompt!r} has no {{subject}}.", "Write {subject} where the subject belongs."
                )


def _check_learning(recipe: Recipe) -> None:
    """Refuse settings of adapter, optimizer and objective that do not go together, and a package that is missing."""
    adapter, optimizer, objective = recipe.adapter, recipe.optimizer, recipe.objective
    optimizer.check(learning_rate=recipe.learning_rate, accumulate=recipe.accumulate)
    if optimizer.finds_learning_rate:
        for group, rate in adapter.rates(recipe.learning_rate).items():
            if rate < 0.1 and (group.startswith("words") or getattr(adapter, "text_encoder", False)):
                raise UserError(
                    f"the learning rate of {group} is {rate:g}, which is only a factor with "
                    f"optimizer.kind={optimizer.kind!r}.",
                    "Leave it out: it is then that of the run, 1.",
                )
    _check_storage(recipe)
    if optimizer.fused_backward and not isinstance(adapter, Full):
        raise UserError(
            f"optimizer.fused_backward=true: is for adapter.kind=full, and this is {adapter.kind}, whose gradients are "
            "small.",
            "Leave it out.",
        )
    if recipe.ema.decay and optimizer.averages:
        raise UserError(
            f"ema.decay={recipe.ema.decay:g}: optimizer.kind={optimizer.kind!r} keeps an average of its own.",
            "Leave ema.decay out.",
        )
    if getattr(adapter, "targets", None) == () and not getattr(adapter, "text_encoder", False):
        raise UserError("adapter.targets=[]: nothing would learn.", "Name layers, or leave it out.")
    if objective.prediction_type != "base" and not isinstance(adapter, Full):
        raise UserError(
            f"objective.prediction_type={objective.prediction_type!r}: is too much to learn for "
            f"adapter.kind={adapter.kind}.",
            "Leave it out, or set adapter.kind=full.",
        )


def _check_storage(recipe: Recipe) -> None:
    """Refuse to store the base in fewer bits, or elsewhere, where its own weights learn or are written to."""
    adapter, section = recipe.adapter, f"base_storage={recipe.base_storage}"
    if recipe.only_reads_base or (recipe.base_storage == "as_computed" and not recipe.offload):
        return
    section = "offload=true" if recipe.base_storage == "as_computed" else section
    if isinstance(adapter, Peft):
        raise UserError(f"{section}: adapter.method={adapter.method} takes its start out of the base's weights, which "
                        "cannot be written to then.", "Leave it out, or use another method.")  # fmt: skip
    raise UserError(f"{section}: is for a base that stays as it is, and adapter.kind={adapter.kind} trains its "
                    "weights.", "Leave it out, or set adapter.kind=lora.")  # fmt: skip


def _check_consistency(recipe: Recipe) -> None:
    """Refuse what cannot learn to jump, or would be learned from nothing."""
    adapter, section = recipe.adapter, "objective.kind=consistency"
    if not isinstance(recipe.objective, Consistency):
        return
    if not isinstance(adapter, LoRA | Peft) or adapter.text_encoder:
        what = "adapter.text_encoder=true" if isinstance(adapter, LoRA | Peft) else f"adapter.kind={adapter.kind}"
        raise UserError(f"{section}: teaches the UNet to take fewer steps, not new words or weights ({what}).",
                        "Use adapter.kind=lora with adapter.text_encoder=false.")  # fmt: skip
    if recipe.prior.enabled:
        raise UserError(f"{section}: the base is the teacher of every picture, so there is no prior to preserve.",
                        "Set prior.enabled=false.")  # fmt: skip
    if recipe.checkpoint.choose == "loss":
        raise UserError(f"{section}: its loss on held-out pictures says nothing about how good its pictures are.",
                        "Set checkpoint.choose to last or evidence.")  # fmt: skip


def require_captions(recipe: Recipe, checked: Checked) -> None:
    """Refuse pictures that say nothing of what they show where a teacher is asked with their captions."""
    if not recipe.learns_few_steps:
        return
    own = recipe.pictures
    template = own.fill(own.caption) if "{class_noun}" in own.caption and not own.class_noun else ""
    mute = [example.name for example in checked.examples if example.caption in ("", template)]
    if mute:
        raise UserError(
            f"{len(mute)} of {len(checked.examples)} pictures have no caption (first: {mute[0]}), and few steps are "
            "learned from what the base makes of it.",
            'Write captions (metadata.jsonl or .txt files), or say what all show: pictures.caption="a photo of a dog".',
        )


def _check_checkpoint(recipe: Recipe) -> None:
    """Refuse to choose a checkpoint that nothing can be judged by."""
    choose, held_out, validation = recipe.checkpoint.choose, recipe.evaluation.pictures, recipe.validation
    if choose == "loss" and (held_out is None or recipe.pictures.subjects):
        found = "there are none" if held_out is None else "pictures.subjects=true has several subjects"
        raise UserError(
            f"checkpoint.choose=loss: is judged on held-out pictures of one subject, and {found}.",
            "Set evaluation.pictures=FOLDER, with pictures that are not trained on, or leave checkpoint.choose out.",
        )
    if choose == "evidence" and not validation.every_steps:
        every = max(1, (recipe.steps or 1000) // 10)
        raise UserError(
            "checkpoint.choose=evidence: is judged on pictures drawn during training, and validation.every_steps is 0.",
            f"Set it as well, such as validation.every_steps={every}.",
        )


def _check_validation(recipe: Recipe) -> None:
    """Refuse validations that cannot be judged, or on prompts that are reported."""
    own = recipe.validation
    if not own.every_steps:
        return
    if recipe.pictures.subjects:
        raise UserError(
            f"validation.every_steps={own.every_steps}: judges one subject, and pictures.subjects=true has several.",
            "Leave it out, or train each subject by itself.",
        )
    if recipe.steps is not None and own.every_steps > recipe.steps:
        raise UserError(
            f"validation.every_steps={own.every_steps}: the run has only {recipe.steps} steps.",
            "Set fewer, or leave it out.",
        )
    if len(set(own.prompts)) < LEAST_UNITS:
        raise UserError(
            f"validation.prompts: {len(set(own.prompts))} are too few to tell one step from another.",
            f"Give {LEAST_UNITS} or more.",
        )
    shown, noun = reported_prompts(recipe), recipe.pictures.class_noun
    for name in ("prompts", "class_prompts"):
        if both := [prompt for prompt in getattr(own, name) if _plain(prompt, noun) in shown]:
            raise UserError(
                f"validation.{name}: {both[0]!r} is one of the comparison's (evaluation), and what is chosen on a "
                "prompt cannot be reported on it.",
                "Write another in one of the two.",
            )


def reported_prompts(recipe: Recipe) -> set[str]:
    """Return the prompts of the comparison with the token dropped; the class noun is filled in where there is one."""
    own = recipe.evaluation
    return {_plain(p, recipe.pictures.class_noun) for p in (*own.prompts, *own.class_prompts, *own.other_prompts)}


def _plain(prompt: str, noun: str | None) -> str:
    """Return a prompt with the token dropped: from it follows the noise that a picture begins with."""
    return prompt.replace("{subject}", "{class_noun}").replace("{class_noun}", noun or "{class_noun}")


def _check_nameless(recipe: Recipe) -> None:
    """Refuse to draw a subject during a few-step run that has no words for any."""
    preview, own, usual = recipe.preview, recipe.validation, type(recipe.validation)()
    if not recipe.learns_few_steps or recipe.pictures.class_noun or recipe.pictures.token:
        return
    class_prompts = () if own.class_prompts == usual.class_prompts else own.class_prompts  # the usual are left out
    drawn = {
        "preview.prompt": (preview.prompt,) if preview.every_steps else (),
        "validation.prompts": own.prompts if own.every_steps else (),
        "validation.class_prompts": class_prompts if own.every_steps else (),
    }
    for name, prompts in drawn.items():
        if unfilled := [prompt for prompt in prompts if "{" in prompt]:
            mine = "one" if name == "preview.prompt" else f"{LEAST_UNITS} or more, unlike the pictures' captions"
            raise UserError(
                f"{name}: {unfilled[0]!r} asks for a subject, and this few-step run has no word for one.",
                f"Give {mine}, or say what all pictures show: pictures.class_noun=dog.",
            )


def check_base(recipe: Recipe) -> None:
    """Refuse a resolution, an objective and a small decoder that the base cannot serve; no weights are read."""
    base, asked = recognise(recipe.base), recipe.objective
    refuse_unsupported(base)
    require_multiple(recipe.resolution, base.size_step_px)
    check_partner(recipe)
    if recipe.preview.decoder and recipe.preview.every_steps:
        check_decoder(recipe.preview.decoder, base)
    predicts = base.prediction_type if asked.prediction_type == "base" else asked.prediction_type
    if asked.zero_terminal_snr:
        refuse_pure_noise(recipe.base, predicts)


def _check_prior(recipe: Recipe) -> None:
    """Refuse prior preservation that cannot preserve anything, or whose teacher cannot teach."""
    prior = recipe.prior
    if prior.active and isinstance(recipe.adapter, TextualInversion):
        raise UserError(
            "prior.enabled=true: does nothing with adapter.kind=textual_inversion, because the class pictures' "
            "captions do not hold the new word.",
            "Set prior.enabled=false, or adapter.kind=pivotal.",
        )
    if prior.teacher and not prior.active:
        raise UserError("prior.teacher=true: prior preservation is off.", "Set prior.enabled=true.")
    if prior.teacher and recipe.objective.prediction_type != "base":
        raise UserError(
            f"prior.teacher=true: the base does not predict {recipe.objective.prediction_type}.",
            "Leave one of the two out.",
        )


def _written(spec: Spec, prefix: str = "") -> Iterator[str]:
    """Yield the names of all settings that were written down and are not what they would be without that."""
    for name in spec.model_fields_set:
        value = getattr(spec, name)
        if isinstance(value, Spec):
            yield from _written(value, f"{prefix}{name}.")
        elif value != type(spec).model_fields[name].get_default():
            yield prefix + name
