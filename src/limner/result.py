"""What a run leaves behind: the files of its adapter, and how they are attached again for drawing."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from limner.adapter_file import WordsFile, read_adapter, read_run
from limner.adapters.adapter import Attached
from limner.adapters.full import Full, FullWeights
from limner.adapters.lora import LoRA, StackedLoRA
from limner.adapters.peft import Peft
from limner.adapters.peft_layers import PeftLayers
from limner.adapters.pivotal import Pivotal, Together
from limner.adapters.textual_inversion import LearnedWords
from limner.errors import UserError
from limner.export.diffusers_folder import write_diffusers_folder
from limner.export.diffusers_lora import write_lora
from limner.export.embedding import write_embedding
from limner.export.peft_adapter import write_peft
from limner.export.single_file import write_single_file
from limner.export.tensors import read_tensors
from limner.families.family import Family
from limner.files import bytes_of, passing, sha256_of
from limner.generate.few_steps import HEADER
from limner.recipe import Recipe
from limner.rundir import RunDir


def write_result(folder: RunDir, recipe: Recipe, family: Family, adapter: Attached) -> list[Path]:
    """Write the files of a run's adapter, each read back and compared; return them, the one to load first.

    A LoRA is one file, a learned word one per token, pivotal tuning both, full fine-tuning a diffusers folder and a
    single-file checkpoint of the whole model.
    """
    about = {**family.facts, **_what_for(recipe), "recipe": recipe.model_dump(mode="json", exclude_none=True)}
    if isinstance(recipe.adapter, Full) and isinstance(adapter, FullWeights):
        dtype = getattr(torch, recipe.adapter.save_precision)
        with family.whole():
            write_diffusers_folder(family, folder.model, dtype=dtype, about=about)
            return [folder.model, write_single_file(family, folder.single_file, dtype=dtype, about=about)]
    if isinstance(recipe.adapter, Peft) and isinstance(adapter, PeftLayers):
        write_peft(recipe.adapter, adapter.state_dict(), folder.adapter, about)
        return [folder.adapter]
    files: list[Path] = []
    if isinstance(adapter, StackedLoRA | Together):
        lora = adapter.lora if isinstance(adapter, Together) else adapter
        spec = recipe.adapter.lora if isinstance(recipe.adapter, Pivotal) else recipe.adapter
        dtype = getattr(torch, spec.save_precision if isinstance(spec, LoRA) else "float32")
        write_lora(lora.state_dict(), folder.adapter, about, dtype=dtype)
        files.append(folder.adapter)
    if isinstance(adapter, LearnedWords | Together):
        words = adapter.words if isinstance(adapter, Together) else adapter
        files += _write_words(folder, words, about)
    return files


def _what_for(recipe: Recipe) -> dict[str, Any]:
    """Return what the adapter is for: the word and class of its subject, or how it draws in few steps."""
    if drawn := recipe.few_steps:
        return {HEADER: drawn.model_dump(mode="json"), "usage_hint": drawn.hint}
    return {"token": recipe.pictures.token, "class_noun": recipe.pictures.class_noun}


def _write_words(folder: RunDir, words: LearnedWords, about: Mapping[str, Any]) -> list[Path]:
    """Write one file per token; its name is the token's letters, which is what A1111 and ComfyUI then call it."""
    vectors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in words.state_dict().items():
        _, encoder, word = name.split(".", 2)
        vectors.setdefault(word, {})[encoder] = tensor
    return [
        write_embedding(parts, folder.embedding(word), token=word, about={**about, "token": word})
        for word, parts in vectors.items()
    ]


def try_result(folder: RunDir, recipe: Recipe, family: Family, adapter: Attached) -> int:
    """Write and check the result once before the first step: what would fail at the end fails now; return its bytes."""
    with passing(folder.path / ".trial") as trial:
        return sum(bytes_of(path) for path in write_result(RunDir(trial), recipe, family, adapter))


def results(folder: RunDir) -> list[Path]:
    """Return the files and folders that the run's adapter consists of; none where it is not trained yet.

    Those of a subject that it was learned beneath come last.
    """
    found = [folder.adapter, folder.model, folder.single_file, *folder.embeddings()]
    own = [path for path in found if path.exists()]
    return [*own, *sorted(folder.subject.rglob("*.safetensors"))] if own else []


def require_result(folder: RunDir) -> list[Path]:
    """Return the run's result.

    Raises:
        UserError: it is not trained yet, or its files are damaged.
    """
    found = results(folder)
    if not found:
        raise UserError(f"{folder.path}: has no adapter yet.", f"Train it first: limner train --resume {folder.path}")
    for file in (*found, *folder.model.rglob("*.safetensors")):
        if file.is_file():
            read_tensors(file)  # maps the file, and says now, before a base is loaded, if it is damaged
    return found


def result_hash(folder: RunDir) -> str:
    """Return the SHA-256 of all files that drawing reads."""
    digest = hashlib.sha256()
    for path in results(folder):
        files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
        for file in files if path != folder.single_file else ():
            digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def attach_result(family: Family, folder: RunDir) -> list[Attached]:
    """Attach a run's LoRA and learned words to its base. A whole model is loaded as a base instead."""
    return [adapter for file in read_run(folder) for adapter in file.attach(family)]


def attach_apart(family: Family, folder: RunDir) -> tuple[list[Attached], list[Attached]]:
    """Attach what `attach_result` does; return the run's own, and the subject beneath it, apart."""
    count = len(read_run(RunDir(folder.subject))) if folder.subject.is_dir() else 0
    attached = [file.attach(family) for file in read_run(folder)]
    own, beneath = ([a for parts in some for a in parts] for some in (attached[count:], attached[:count]))
    return own, beneath


def merge_result(family: Family, folder: RunDir) -> Family | None:
    """Return a twin with a run's adapter folded into its weights, and no hook left of it; None without an adapter file.

    `family` is not touched. What the adapter leaves as it was stays shared with it; for a moment a whole copy is there.
    """
    if not folder.adapter.is_file():
        return None
    twin, folded = family.twin(), copy.deepcopy(family)
    files = read_run(folder)
    for adapter in [adapter for file in files if not isinstance(file, WordsFile) for adapter in file.attach(folded)]:
        adapter.merge()
    _take_changed(twin, folded)
    for file in files:
        if isinstance(file, WordsFile):
            file.attach(twin)
    return twin


def _take_changed(twin: Family, folded: Family) -> None:
    """Give a twin the weights of its like that differ from its own."""
    for plain, changed in zip(twin.together, folded.together, strict=True):
        for part, module in changed.parts.items():
            own = dict(plain.parts[part].named_parameters())
            for name, weight in module.named_parameters():
                if not torch.equal(weight, own[name]):
                    place, _, leaf = name.rpartition(".")
                    parameter = torch.nn.Parameter(weight.detach(), requires_grad=False)
                    setattr(plain.parts[part].get_submodule(place), leaf, parameter)


def attach_file(family: Family, path: Path, strength: float) -> Attached:
    """Attach a LoRA's file, or that of one of peft's methods, at a strength.

    One that was trained on the model which draws together with the family (the refiner) is attached to that.
    """
    first, *words = (adapter for file in read_adapter(path) for adapter in file.attach(family))
    adapter = Together(first, words[0]) if words and isinstance(words[0], LearnedWords) else first
    adapter.set_strength(strength)
    return adapter
