"""How fast and how large drawing is: base, adapter attached and adapter merged draw in turn in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from limner import machine
from limner.adapters.adapter import Attached
from limner.conflicts import refuse_idle, require_use, without_effect
from limner.drawing import follow_objective, load_base
from limner.energy import Meter, find_meter
from limner.errors import UserError
from limner.evaluate.inference import in_lines, measurements
from limner.families.family import Family
from limner.files import bytes_of
from limner.generate.draw import Request, check_resolution, requests_for
from limner.generate.measure import Measuring, Painter, Session
from limner.metrics.inference import Inference, InferenceArm, InferenceDesign, LeftOut, MergeCheck, Pair, State
from limner.recipe import Recipe, load_recipe
from limner.refining import check_partner, load_partner, require_beginning
from limner.result import attach_result, merge_result, require_result
from limner.rundir import RunDir, write_json
from limner.watch import Watch

HEEDED = ("generation", "resolution", "base", "device", "precision")
"""The settings of a recipe that are of use here, and that runs must share to be measured side by side."""
LARGE_SHARE = 0.1
"""Where merging loses more than this of what the adapter changes, it is said."""


def measure(
    runs: str | Path | Sequence[str | Path], *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None
) -> list[Path]:
    """Measure drawing with the base and with each run, adapter attached and merged; return each run's inference.json.

    `settings` are those of `Measuring` (inference_steps, batches, seconds) and of drawing ("generation.scheduler").
    Several runs draw in turn with one base.

    Raises:
        UserError: a run is not trained, or the runs draw with other settings than one another.
        KeyboardInterrupt: Ctrl-C; what was measured until then is written.
    """
    watch = watch or Watch()
    folders = [RunDir.open(Path(run)) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    asked, drawing = _split(settings or {})
    require_use(drawing, HEEDED, f"measuring (besides {', '.join(Measuring.model_fields)})")
    recipes = [load_recipe(folder.recipe, drawing) for folder in folders]
    refuse_idle(drawing, dict(without_effect(recipes[0])))
    _check(folders, recipes)
    asked = asked if asked.batches else asked.model_copy(update={"batches": (1, recipes[0].generation.batch)})
    painters, arms = _arms(folders, recipes, watch)
    base = painters[0].family
    meter = find_meter(base.device)
    session = Session(
        painters, recipes[0].generation, check_resolution(base, recipes[0].resolution), asked,
        meter=meter if isinstance(meter, Meter) else None,
    )  # fmt: skip
    began, pristine = datetime.now(UTC).isoformat(timespec="seconds"), _prediction(painters[0])
    stopped = True
    try:
        with watch.phase("warm up"):
            session.warm_up(watch.progress)
        if not session.rounds:
            (why, *_) = session.left_out.values()
            raise UserError(f"inference_steps={list(asked.inference_steps)}: {why}.", "Give larger numbers of steps.")
        _say_plan(session, watch)
        planned = set(session.rounds)
        with watch.phase("measure"):
            session.run(watch.progress)
        _say_left_out({pair: why for pair, why in session.left_out.items() if pair in planned}, watch)
        stopped = False
    finally:
        if session.taken:
            assert torch.equal(pristine, _prediction(painters[0])), "the base draws otherwise than before"
            design = _design(folders, recipes[0], session, meter, began, stopped=stopped)
            made = _write(folders, design, session, arms, watch)
        else:
            made = []
    return made


def _split(settings: Mapping[str, Any]) -> tuple[Measuring, dict[str, Any]]:
    """Return what is to be measured, and the settings that are left: those of drawing."""
    own = {name: value for name, value in settings.items() if name in Measuring.model_fields}
    try:
        asked = Measuring.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        name, why = str(first["loc"][0]), first["msg"].lower().replace("a valid tuple", "a list of numbers")
        raise UserError(f"{name}={settings[name]!r}: is not allowed ({why}).",
                        "Write inference_steps=[1,4,25] batches=[1,8] seconds=60.") from error  # fmt: skip
    return asked, {name: value for name, value in settings.items() if name not in own}


def _check(folders: Sequence[RunDir], recipes: Sequence[Recipe]) -> None:
    """Refuse runs that are not trained, are named twice, or draw otherwise than the first."""
    paths = [folder.path.resolve() for folder in folders]
    for folder, recipe in zip(folders, recipes, strict=True):
        if paths.count(folder.path.resolve()) > 1:
            raise UserError(f"{folder.path}: is named twice.", "Name each run once.")
        require_result(folder)
        if recipe.pictures.subjects:
            raise UserError(f"{folder.path}: holds several subjects, and one is measured at a time.", "Name another.")
        check_partner(recipe)
        require_beginning(recipe, str(folder.path))
        for name in HEEDED:
            here, there = getattr(recipes[0], name), getattr(recipe, name)
            if here != there:
                raise UserError(
                    f"Measuring side by side refused: {folders[0].path} and {folder.path} have another {name}.",
                    f"Measure each alone, or give all the same {name} as a setting.",
                )


def _arms(
    folders: Sequence[RunDir], recipes: Sequence[Recipe], watch: Watch
) -> tuple[list[Painter], list[InferenceArm]]:
    """Load the base, and make of it what each run draws with; weights that are the same are held once."""
    base = load_base(recipes[0], watch)
    load_partner(base, recipes[0], watch)
    prompts = _requests(recipes[0])
    painters = [Painter("base", base, prompts, _bytes(base))]
    arms = [_arm("base", "base", None, _bytes(base))]
    for folder, recipe in zip(folders, recipes, strict=True):
        prefix, run = f"{_name(folder, folders)}, " if len(folders) > 1 else "", _name(folder, folders)
        if folder.model.is_dir():
            whole = load_base(recipe, watch, model=folder.model)
            whole.refiner, whole.begun_by = base.refiner, base.begun_by
            painters.append(Painter(f"{prefix}whole", whole, _requests(recipe), _bytes(whole)))
            arms.append(_arm(f"{prefix}whole", "whole", run, bytes_of(folder.model)))
            continue
        with watch.phase("merge"):
            twin, merged = base.twin(), merge_result(base, folder)
            beside = attach_result(twin, folder)
            follow_objective(twin, recipe)
            files = [folder.adapter, *folder.embeddings()]
            disk = sum(bytes_of(file) for file in files if file.exists())
            painters.append(Painter(f"{prefix}unmerged", twin, _requests(recipe), _bytes(twin) + _added(beside)))
            arms.append(_arm(f"{prefix}unmerged", "unmerged", run, disk))
            if merged:
                follow_objective(merged, recipe)
                painters.append(Painter(f"{prefix}merged", merged, _requests(recipe), _bytes(merged)))
                check = _compare(painters[0], painters[-2], painters[-1])
                arms.append(_arm(f"{prefix}merged", "merged", run, _bytes(merged), check))
                _say_check(run, check, base.dtype, watch)
    return painters, arms


def _arm(name: str, state: State, run: str | None, disk: int, merge: MergeCheck | None = None) -> InferenceArm:
    return InferenceArm(name=name, state=state, run=run, disk_bytes=disk, memory={}, merge=merge)


def _name(folder: RunDir, folders: Sequence[RunDir]) -> str:
    """Return the name of a run's folder, with the one above it where several are called so."""
    names = [one.path.resolve().name for one in folders]
    own = folder.path.resolve()
    return own.name if names.count(own.name) == 1 else f"{own.parent.name}/{own.name}"


def _requests(recipe: Recipe) -> list[Request]:
    asked = recipe.evaluation.requests(recipe.pictures.token, recipe.pictures.class_noun or "picture")
    return asked or requests_for("free", [("a picture", "a picture")], range(recipe.generation.batch))


def _bytes(family: Family) -> int:
    return sum(weight.nbytes for weight in family.weights())


def _added(attached: Sequence[Attached]) -> int:
    return sum(tensor.nbytes for one in attached for tensor in one.state_dict().values())


@torch.no_grad()
def _prediction(painter: Painter) -> Tensor:
    """Return what a model, and the one that draws together with it, predicts for one and the same noise; float32."""
    found: list[Tensor] = []
    for family in painter.family.together:
        side = family.unet.config.sample_size
        shape = (1, family.unet.config.in_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(family.device, family.dtype)
        told = family.encode_text([painter.requests[0].prompt])
        found.append(family.predict(noise, torch.tensor([500], device=family.device), told).float().flatten().cpu())
    return torch.cat(found)


def _compare(base: Painter, unmerged: Painter, merged: Painter) -> MergeCheck:
    """Say how near a merged adapter comes to the same one beside the weights, in one prediction."""
    plain, beside, folded = (_prediction(one) for one in (base, unmerged, merged))
    effect = float((beside - plain).norm())
    return MergeCheck(
        largest=float((folded - beside).abs().max()),
        share_of_effect=float((folded - beside).norm()) / effect if effect else None,
        agrees=torch.allclose(folded, beside, rtol=1e-4, atol=1e-5) if base.family.dtype == torch.float32 else None,
    )


def _say_check(run: str, check: MergeCheck, dtype: torch.dtype, watch: Watch) -> None:
    share = check.share_of_effect or 0.0
    if check.agrees is False or share > LARGE_SHARE:
        held = str(dtype).removeprefix("torch.")
        watch.say(f"warning: {run}: merged into {held} weights it predicts otherwise than unmerged, by {share:.1%} of "
                  "what the adapter changes")  # fmt: skip


def _say_plan(session: Session, watch: Watch) -> None:
    """Say before the first round what fits into the time, and what does not."""
    for batch in sorted({pair.batch for pair in session.rounds}):
        fits = sorted(pair for pair in session.rounds if pair.batch == batch)
        rounds = sorted({session.rounds[pair] for pair in fits})
        watch.say(f"batch {batch}: {', '.join(str(pair.steps) for pair in fits)} steps fit, in {rounds[0]}"
                  f"{f' to {rounds[-1]}' if len(rounds) > 1 else ''} rounds")  # fmt: skip
    _say_left_out(session.left_out, watch)


def _say_left_out(left_out: Mapping[Pair, str], watch: Watch) -> None:
    for batch in sorted({pair.batch for pair in left_out}):
        pairs = sorted(pair for pair in left_out if pair.batch == batch)
        watch.say(f"batch {batch}: left out {', '.join(str(p.steps) for p in pairs)} steps: {left_out[pairs[-1]]}")


def _design(
    folders: Sequence[RunDir], recipe: Recipe, session: Session, meter: Meter | str, began: str, *, stopped: bool
) -> InferenceDesign:
    base = session.painters[0].family
    sampling = recipe.generation
    partner = {name: value for name, value in [sampling.partner] if value}
    return InferenceDesign(
        base=recipe.base, identity=base.identity, runs=tuple(_name(one, folders) for one in folders), session=began,
        usual_steps=sampling.num_inference_steps,
        sampling={"scheduler": sampling.scheduler, "guidance_scale": sampling.guidance_scale,
                  "resolution_px": session.resolution_px, **partner},
        precision=str(base.dtype).removeprefix("torch."), device=machine.name_of(base.device),
        hardware=machine.hardware(), versions=machine.versions(),
        energy=meter.what if isinstance(meter, Meter) else meter,
        budget_s=session.asked.seconds, taken_s=round(session.spent_s, 3), stopped=stopped,
    )  # fmt: skip


def _write(
    folders: Sequence[RunDir], design: InferenceDesign, session: Session, arms: Sequence[InferenceArm], watch: Watch
) -> list[Path]:
    """Write the base's figures and its own into each run's folder; say them all."""
    found = Inference(
        design=design,
        arms=tuple(arm.model_copy(update={"memory": session.memory.get(arm.name, {})}) for arm in arms),
        measurements=measurements(session.taken, [painter.name for painter in session.painters]),
        left_out=tuple(LeftOut(steps=pair.steps, batch=pair.batch, why=why)
                       for pair, why in sorted(session.left_out.items())),
    )  # fmt: skip
    for line in in_lines(found):
        watch.say(line)
    for folder in folders:
        own = [arm for arm in found.arms if arm.run in (None, _name(folder, folders))]
        names = {arm.name for arm in own}
        rows = tuple(one for one in found.measurements if one.arm in names)
        write_json(folder.inference, found.model_copy(
            update={"arms": tuple(own), "measurements": rows}).model_dump(mode="json"))  # fmt: skip
    return [folder.inference for folder in folders]
