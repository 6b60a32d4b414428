"""Pictures that a run needs: the comparison's, class pictures, previews; and loading its base."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from limner import machine
from limner.errors import UserError
from limner.families.decoder import Decoder, load_decoder
from limner.families.family import Family
from limner.families.load import load
from limner.families.recognise import recognise
from limner.families.storage import BaseStorage
from limner.files import default_cache, replacing
from limner.generate.draw import (
    MANIFEST,
    SETTINGS,
    Request,
    Sampling,
    caption_drawn,
    check_resolution,
    draw,
    requests_for,
    requests_in_turn,
)
from limner.generate.faults import tell_faults
from limner.ladder import Acting, draw_places, drop_others, places_of
from limner.prepare.check import Checked, check_class_pictures
from limner.recipe import Recipe
from limner.refining import check_partner, load_partner, require_beginning
from limner.result import attach_apart, require_result, result_hash
from limner.rundir import RunDir, read_json
from limner.seeds import seed_of
from limner.watch import Watch


def load_base(
    recipe: Recipe,
    watch: Watch,
    *,
    model: Path | None = None,
    storage: BaseStorage = "as_computed",
    offload: bool = False,
    unread: Collection[str] = (),
) -> Family:
    """Load the recipe's base, or a model that was made from it, and say how it computes."""
    at = machine.place(recipe.device, recipe.precision)
    name = str(model or recipe.base)
    base = recognise(name)
    for line in (base.line if base.prediction_type_from is None else "", at.note):
        if line:
            watch.say(line)
    with watch.phase("load"):
        family = load(name, dtype=at.dtype, device=at.device, storage=storage, offload=offload, unread=unread)
    stored = "" if storage == "as_computed" else f"; the frozen base is stored in {storage}"
    stored += "; its layers come from the host's memory each time that they act" if offload else ""
    watch.say(f"computes on {at.device} in {str(at.dtype).removeprefix('torch.')}; what learns is float32{stored}")
    return family


def follow_objective(family: Family, recipe: Recipe) -> None:
    """Take the schedule that the recipe's objective teaches, for training and for drawing with what was trained."""
    asked = recipe.objective
    family.set_schedule(
        prediction_type=None if asked.prediction_type == "base" else asked.prediction_type,
        zero_terminal_snr=asked.zero_terminal_snr,
    )


def draw_comparison(folder: RunDir, recipe: Recipe, watch: Watch) -> None:
    """Draw the evaluation's prompts with the base and with what was trained: same prompts, seeds and settings.

    The base's pictures are kept in the cache, so that several runs on one base draw them once. A refiner, or the base
    that begins where the run's is a refiner, draws on both sides.
    """
    require_result(folder)
    if recipe.pictures.subjects:
        message = f"{folder.path}: holds several subjects, and the comparison is made for one at a time."
        raise UserError(message, "Draw each with: limner generate RUN --prompt ...")
    check_partner(recipe)
    require_beginning(recipe, str(folder.path))
    family = load_base(recipe, watch)
    load_partner(family, recipe, watch)
    requests = recipe.evaluation.requests(recipe.pictures.token, recipe.pictures.class_noun or "picture")
    named: dict[str, Any] = {
        "sampling": recipe.generation, "resolution_px": check_resolution(family, recipe.resolution),
        "replace": True,
    }  # fmt: skip
    refiner, begun_by = family.refiner, family.begun_by
    identity, others = _identities(folder, recipe, family)
    about = {"base": recipe.base, "identity": identity, "strength": 1.0}
    untouched = {**about, "arm": "base", "adapter": None, "adapter_sha256": None}
    at_base, beyond = places_of(recipe, has_strength=folder.has_strength())
    drop_others(folder, (*at_base, *beyond))
    key = seed_of("comparison", *family.identity.values(), *others.values(), recipe.base,
                  recipe.generation.model_dump_json(), str(family.scheduler_config), named["resolution_px"],
                  str(requests))  # fmt: skip
    kept = default_cache() / "base-pictures" / f"{key:016x}"
    with watch.phase("draw base"), folder.timed("draw base"):
        say_faults(draw(family, requests, kept, about=untouched, progress=watch.progress, **named), "base", watch)
        _copy(kept, folder.images / "base")
    steps = kept.with_name(f"{kept.name}-steps")
    for place, there in draw_places(family, Acting(), at_base, requests, steps, watch, about=untouched,
                                    **named).items():  # fmt: skip
        _copy(there, folder.ladder / place.name)
    acting = Acting()
    if folder.model.is_dir():
        del family
        family = load_base(recipe, watch, model=folder.model)
        family.refiner, family.begun_by = refiner, begun_by
    else:
        acting = Acting(*attach_apart(family, folder), recipe.drawn_with if recipe.learns_few_steps else None)
        follow_objective(family, recipe)
    tuned = {**about, "arm": "tuned", "adapter": recipe.adapter.kind, "adapter_sha256": result_hash(folder)}
    tuned |= {**_brings(folder, recipe, watch), **_trained_on(recipe, watch)}
    named_few: dict[str, Any] = {**named, "sampling": recipe.drawn_with}
    with watch.phase("draw tuned"), folder.timed("draw tuned"):
        made = draw(family, requests, folder.images / "tuned", about=tuned, progress=watch.progress, **named_few)
        say_faults(made, "tuned", watch, tuned=True)
    draw_places(family, acting, beyond, requests, folder.ladder, watch, about=tuned, **named)
    for adapter in (*acting.own, *acting.beneath):
        adapter.detach()


def _identities(folder: RunDir, recipe: Recipe, family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """Return what runs must have in common to be compared, and the hashes of the model that draws with the base."""
    identity, others = dict(family.identity), dict[str, str]()
    if partner := family.refiner or family.begun_by:
        (setting, name), others = recipe.generation.partner, partner.identity
        folder.update_provenance(**{setting: {"name": name, "identity": others}})
    if family.begun_by:
        identity |= {f"begun_by {part}": digest for part, digest in others.items()}
    return identity, others


def _brings(folder: RunDir, recipe: Recipe, watch: Watch) -> dict[str, str]:
    """Return what the manifest says of an adapter that decides itself how it is drawn with, and say so."""
    if not recipe.few_steps:
        return {}
    watch.say(recipe.few_steps.fitted(recipe.generation, {}, str(folder.path))[1][0])
    return {"few_steps": recipe.few_steps.kind}


def _trained_on(recipe: Recipe, watch: Watch) -> dict[str, str]:
    """Return what the manifest says of a base that was another while training than when it draws, and say so."""
    if recipe.base_storage == "as_computed":
        return {}
    watch.say(f"trained on the base stored in {recipe.base_storage}; drawn, on both sides, with the base as it is")
    return {"base_storage": recipe.base_storage}


def say_faults(manifest: Path, what: str, watch: Watch, *, tuned: bool = False) -> None:
    """Say what is wrong with the pictures of a manifest, if anything is."""
    line = tell_faults(manifest, what, tuned=tuned)
    if line:
        watch.say(line)


def _copy(kept: Path, out: Path) -> None:
    """Bring pictures from the cache into the run folder, unless they are there."""
    if (out / SETTINGS).is_file() and read_json(out / SETTINGS) == read_json(kept / SETTINGS):
        return
    with replacing(out) as new:
        shutil.copytree(kept, new, ignore=shutil.ignore_patterns(".*"))


def class_pictures(
    folder: RunDir, recipe: Recipe, family: Family, given: Path | None, resolution_px: int, watch: Watch
) -> Checked:
    """Return the class pictures of prior preservation: the user's, or drawn by the base and kept in the cache."""
    if given is None:
        prompts = recipe.prior.captions(recipe.pictures)
        sampling, begun_by = recipe.generation.alone(), family.begun_by
        models = (*family.identity.values(), *(begun_by.identity.values() if begun_by else ()))
        key = f"{seed_of(*models, *prompts, recipe.prior.count, resolution_px, sampling.model_dump_json()):016x}"
        given = default_cache() / "class-pictures" / key
        with watch.phase("class pictures"), folder.timed("class pictures"):
            made = draw_class(family, recipe, given, recipe.prior.count, resolution_px, watch)
        wrong = tell_faults(made, "class pictures", tuned=False)
        if wrong:
            shutil.rmtree(given)
            raise UserError(wrong, "They would be learned from: set precision=float32, or give --class-pictures DIR.")
    instance = [Path(p) for p in read_json(folder.provenance)["pictures"]]
    return check_class_pictures(given, recipe.pictures, recipe.prior, resolution_px=resolution_px, instance=instance)


def draw_class(family: Family, recipe: Recipe, out: Path, count: int, resolution_px: int, watch: Watch) -> Path:
    """Draw so many class pictures of prior preservation with the untouched base, captioned; return their manifest."""
    prompts = recipe.prior.captions(recipe.pictures)
    manifest = draw(
        family, requests_in_turn(prompts, count), out, sampling=recipe.generation.alone(),
        resolution_px=resolution_px, replace=True, progress=watch.progress,
        about={"arm": "base", "base": recipe.base, "adapter": None},
    )  # fmt: skip
    caption_drawn(manifest)
    return manifest


def small_decoder(recipe: Recipe, *, dtype: torch.dtype, device: torch.device | str) -> Decoder | None:
    """Load the small decoder that the recipe names for previews and live drawing; None where it names none."""
    name = recipe.preview.decoder
    return load_decoder(name, recognise(recipe.base), dtype=dtype, device=device) if name else None


def preview(folder: RunDir, recipe: Recipe, family: Family, step: int) -> tuple[Path, str | None]:
    """Draw the preview's prompt with the weights as they stand; return the folder, and what is wrong with it."""
    prompt = recipe.preview.prompt.replace("{subject}", recipe.pictures.subject)
    requests = requests_for("free", [(prompt, prompt)], range(recipe.preview.images))
    decoder = small_decoder(recipe, dtype=family.dtype, device=family.device)
    made = draw_between(folder.previews, requests, recipe, family, step, decoder)
    return made.parent, tell_faults(made, f"preview at step {step}", tuned=True)


def draw_untouched(out: Path, requests: Sequence[Request], recipe: Recipe, family: Family) -> Path:
    """Draw with the base as it is, into the folder of step 0; return the manifest.

    The pictures are kept in the cache, so that runs on one base which are judged alike draw them once.
    """
    begun_by = family.begun_by.identity.values() if family.begun_by else ()
    key = seed_of("untouched", *family.identity.values(), *begun_by, recipe.base, str(family.dtype),
                  family.device.type, recipe.generation.alone().model_dump_json(), str(family.scheduler_config),
                  check_resolution(family, recipe.resolution), str(requests))  # fmt: skip
    kept = draw_between(default_cache() / "base-pictures" / f"{key:016x}", requests, recipe, family, 0).parent
    _copy(kept, out / kept.name)
    return out / kept.name / MANIFEST


def draw_between(
    out: Path, requests: Sequence[Request], recipe: Recipe, family: Family, step: int, decoder: Decoder | None = None
) -> Path:
    """Draw with the weights as they stand between two steps, into a folder of that step; return the manifest.

    At step 0 nothing is learned yet, and the base draws as it always does.
    """
    sampling = recipe.drawn_with if step else recipe.generation
    place = out / f"step-{step:06d}"
    return _draw_so(place, requests, recipe, family, sampling, step, decoder)


def draw_untaught(folder: RunDir, requests: Sequence[Request], recipe: Recipe, family: Family) -> dict[str, Path]:
    """Draw with the base of a few-step run in as few steps as its adapter takes; return the folders, by what they are.

    First as the adapter is drawn with, which is where it begins; then with the base's own sampler and guidance.
    """
    few, steps = recipe.drawn_with, recipe.drawn_with.num_inference_steps
    own = recipe.generation.model_copy(update={"num_inference_steps": steps})
    drawn = folder.untaught, folder.untaught.with_name("untaught-own-sampler")
    for out, sampling in zip(drawn, (few, own), strict=True):
        _draw_so(out, requests, recipe, family, sampling, 0)
    ways = "drawn as the adapter is", "with its own sampler and guidance"
    return {f"the base in {steps} steps, {way}": out for way, out in zip(ways, drawn, strict=True)}


def _draw_so(
    out: Path, requests: Sequence[Request], recipe: Recipe, family: Family, sampling: Sampling, step: int,
    decoder: Decoder | None = None,
) -> Path:  # fmt: skip
    with family.whole():
        return draw(
            family, requests, out, sampling=sampling.alone(), replace=True, about={"base": recipe.base, "step": step},
            progress=lambda done, total: None, resolution_px=check_resolution(family, recipe.resolution),
            decoder=decoder,
        )  # fmt: skip
