"""The subject beneath a few-step adapter: kept in the run's folder, and attached to teacher and student alike."""

from __future__ import annotations

import shutil
from pathlib import Path

from limner.adapter_file import AdapterFile, WordsFile, read_adapter, read_run
from limner.adapters.adapter import Attached
from limner.adapters.lora import StackedLoRA
from limner.adapters.peft_layers import PeftLayers
from limner.errors import UserError
from limner.export.peft_reading import is_peft_folder
from limner.families.family import Family
from limner.files import replacing, sha256_of
from limner.recipe import Recipe
from limner.rundir import RunDir
from limner.seeds import seed_of


def check_underlying(recipe: Recipe) -> None:
    """Refuse what cannot stay attached while a few-step adapter is learned; nothing of a base is read.

    Raises:
        UserError: it cannot be read, is a whole model, or is a few-step adapter itself.
    """
    path = recipe.distill.adapter
    if path is None:
        return
    where = f"distill.adapter={path}"
    if not path.exists():
        raise UserError(f"{where}: there is no such run or file.", "Give a run's folder, or a .safetensors file.")
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"{where}: is no .safetensors file.", "Give one, or the run that it comes from.")
    if (path / "model").is_dir():
        raise UserError(f"{where}: is a whole model, and no adapter.", f"Give it as the base: base={path / 'model'}")
    if is_peft_folder(path):
        raise UserError(f"{where}: is peft's folder.", f"Make a file of it: limner export {path} --to kohya")
    if any(file.few_steps for file in read_adapter(path)):
        raise UserError(f"{where}: is a few-step adapter itself.", "Give the base or the subject that it was made for.")


def keep_underlying(folder: RunDir, recipe: Recipe) -> None:
    """Copy the subject's files into the run's folder, where they are not yet: it then needs nothing beside it."""
    path = recipe.distill.adapter
    if path is None or folder.subject.is_dir() or not folder.writes:
        return
    check_underlying(recipe)
    with replacing(folder.subject) as new:
        own, learned = RunDir(new), RunDir(path).pictures
        is_word = path.is_file() and isinstance(read_adapter(path)[0], WordsFile)
        for file in _held(path):
            words = own.path / "embeddings"
            place = words / file.name if is_word or file.parent.name == words.name else own.adapter
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        if learned.is_dir():  # likeness is measured against them
            shutil.copytree(learned, own.pictures)
    folder.update_provenance(subject={"path": str(path), "sha256": _hashes(folder.subject)})


def attach_underlying(family: Family, place: Path) -> list[Attached]:
    """Attach a subject, a run's folder or a file, so that it does not learn; the family gets an identity of its own.

    What is cached of its texts and pictures is thus kept apart from what the base alone makes of them.
    """
    files: list[AdapterFile] = read_run(RunDir(place)) if place.is_dir() else read_adapter(place)
    attached = [adapter for file in files for adapter in file.attach(family)]
    for adapter in attached:
        _freeze(adapter)
    digest = _hashes(place)
    family.identity |= {part: f"{seed_of(family.identity[part], *digest):016x}" for part in ("unet", "text")}
    return attached


def _freeze(adapter: Attached) -> None:
    """Let an adapter act without gradients of its own; learned words are read without any."""
    if isinstance(adapter, StackedLoRA):
        for layer in adapter.layers.values():
            layer.requires_grad_(False)
    elif isinstance(adapter, PeftLayers):
        for parameter in adapter.slot_parameters(0).values():
            parameter.requires_grad_(False)


def _held(place: Path) -> list[Path]:
    """Return the files of a subject: its adapter, then its learned words."""
    run = RunDir(place)
    return [file for file in (run.adapter, *run.embeddings()) if file.is_file()] if place.is_dir() else [place]


def _hashes(place: Path) -> list[str]:
    return [sha256_of(file) for file in _held(place)]
