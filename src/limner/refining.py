"""A base and a refiner that draw together: which fit, how the other is loaded, what a run on a refiner learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from limner.errors import UserError
from limner.families.family import Family
from limner.families.load import load
from limner.families.recognise import FAMILIES, REFINED, Recognised, is_refiner, recognise, refuse_unsupported
from limner.generate.draw import steps_around_handover
from limner.objectives import Consistency
from limner.recipe import Recipe, changed
from limner.watch import Watch

PUBLISHED = {
    "refiner": next(known.published for family, known in FAMILIES.items() if is_refiner(family)),
    "begun_by": next(known.published for known in FAMILIES.values() if known.refiner),
}
"""A model that fits, for each of the two settings."""


def check_partner(recipe: Recipe) -> None:
    """Refuse a refiner, or a base that is to begin, which cannot draw together with the base; no weights are read."""
    base, asked = recognise(recipe.base), recipe.generation
    own = f"base={recipe.base!r} is {base.called}"
    if asked.refiner and asked.begun_by:
        raise UserError("generation.refiner and generation.begun_by are both set.",
                        "Keep one: refiner with an SDXL base, begun_by with a base that is a refiner.")  # fmt: skip
    if asked.refiner and not base.refiner:
        begun_by = f"Name the base that begins: generation.begun_by={PUBLISHED['begun_by']}"
        raise UserError(
            f"generation.refiner={asked.refiner!r}: {own}, and a refiner finishes what an SDXL base begins.",
            begun_by if base.is_refiner else "Leave it out, or use an SDXL base.",
        )
    if asked.begun_by and not base.is_refiner:
        raise UserError(f"generation.begun_by={asked.begun_by!r}: {own}, which begins its pictures itself.",
                        "Leave it out. What finishes an SDXL base's pictures is generation.refiner.")  # fmt: skip
    setting, name = asked.partner
    if name:
        with named(setting, name):
            partner = recognise(name)
            refuse_unsupported(partner)
        _check_fits(base, partner, setting)
        first, last = (base, partner) if asked.refiner else (partner, base)
        begun, finished = (steps_around_handover(asked, one.scheduler_config) for one in (first, last))
        if not (begun[0] and finished[1]):
            idle = "refiner" if begun[0] else "base"
            raise UserError(
                f"generation.handover={asked.handover:g}: of {asked.num_inference_steps} steps the {idle} takes none.",
                "Use a handover nearer to 0.8, or more generation.num_inference_steps.",
            )


def _check_fits(base: Recognised, partner: Recognised, setting: str) -> None:
    """Refuse a model in the other one's place, and latents that cannot be handed over."""
    where = f"generation.{setting}={partner.name!r}"
    if partner.family != base.refiner and partner.refiner != base.family:
        wanted = "a refiner" if setting == "refiner" else "an SDXL base"
        found = "the SDXL refiner" if partner.is_refiner else f"a base ({partner.called})"
        raise UserError(f"{where}: is {found}, not {wanted}.", f"Use a model such as {PUBLISHED[setting]}.")
    if partner.latents != base.latents:
        own, other = (f"{channels} channels, {side} px, scale {scale:g}" for channels, side, scale, _ in
                      (base.latents, partner.latents))  # fmt: skip
        raise UserError(f"{where}: its latents ({other}) are not those of base={base.name!r} ({own}).",
                        "Use a base and a refiner with the same VAE.")  # fmt: skip


def require_beginning(recipe: Recipe, drawn: str) -> None:
    """Refuse to draw with a refiner alone; `drawn` is what asks for pictures."""
    if recognise(recipe.base).is_refiner and not recipe.generation.begun_by:
        raise UserError(
            f"{drawn}: base={recipe.base!r} is the SDXL refiner, which cannot begin a picture.",
            f"Name the base that does (for a run in its recipe.toml): generation.begun_by={PUBLISHED['begun_by']}",
        )


def suited(recipe: Recipe, watch: Watch, *, class_pictures: bool = False) -> Recipe:
    """Return the recipe as its base needs it, and say so: a refiner learns in its own part of the noise.

    Raises:
        UserError: the run would draw with a refiner alone; `class_pictures` says that these are given.
    """
    if not recognise(recipe.base).is_refiner:
        return recipe
    if isinstance(recipe.objective, Consistency):
        raise UserError(
            f"objective.kind=consistency: base={recipe.base!r} is the SDXL refiner, which cannot begin a picture.",
            "Give the SDXL base.",
        )
    if recipe.preview.every_steps:
        require_beginning(recipe, f"preview.every_steps={recipe.preview.every_steps}")
    if recipe.validation.every_steps:
        require_beginning(recipe, f"validation.every_steps={recipe.validation.every_steps}")
    if recipe.prior.active and not class_pictures:
        require_beginning(recipe, "prior.enabled=true without --class-pictures")
    if not recipe.generation.begun_by:
        watch.say("the refiner cannot begin a picture: without generation.begun_by=BASE this run will not be compared")
    trained, seen = recipe.objective.timestep_range, round(1 - recipe.generation.handover, 6)
    if trained is None:
        trained = REFINED
        recipe = changed(recipe, {"objective.timestep_range": list(trained)})
        watch.say(f"objective.timestep_range=[{trained[0]:g}, {trained[1]:g}]: the noise that a refiner is made for")
    if recipe.generation.begun_by and seen > trained[1]:
        watch.say(f"generation.handover={recipe.generation.handover:g} hands over noisier pictures ({seen:g}) than are "
                  f"trained (objective.timestep_range up to {trained[1]:g})")  # fmt: skip
    return recipe


def load_partner(family: Family, recipe: Recipe, watch: Watch) -> None:
    """Load the model that draws together with the family, where the recipe names one, as the family computes."""
    setting, name = recipe.generation.partner
    if not name:
        return
    with watch.phase(f"load {setting.replace('_', ' ')}"), named(setting, name):
        setattr(family, setting, load(name, dtype=family.dtype, device=family.device))


@contextmanager
def named(setting: str, name: str) -> Iterator[None]:
    """Within this block what is wrong with the model called `name` is said of the setting that names it."""
    try:
        yield
    except UserError as error:
        message = error.message.replace(f"base={name!r}", f"generation.{setting}={name!r}", 1)
        raise UserError(message, error.hint) from error
