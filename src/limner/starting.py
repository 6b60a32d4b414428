"""Begin a run with the weights of another one, or of a LoRA's or embedding's file, instead of new ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.adapters.full import FullWeights
from limner.adapters.peft import Peft
from limner.adapters.pivotal import Together
from limner.adapters.textual_inversion import LearnedWords
from limner.errors import UserError
from limner.export.embedding import read_embedding
from limner.export.lora_files import read_any_lora
from limner.export.lora_names import layout_of
from limner.export.peft_adapter import SPEC, read_peft
from limner.families.load import load
from limner.families.weights import read_header
from limner.files import sha256_of
from limner.recipe import Recipe
from limner.rundir import RunDir


def find_start(init_from: str) -> list[Path]:
    """Return the files (for full fine-tuning the model's folder) that a run is to begin with.

    Raises:
        UserError: there is no such run or file, or the run has no result yet.
    """
    path = Path(init_from).expanduser()
    if not path.exists():
        raise UserError(f"init_from={init_from}: there is no such run or file.", "Give a run's folder or a LoRA file.")
    if path.is_file():
        return [path]
    run = RunDir(path)
    found = [file for file in (run.adapter, run.model, *run.embeddings()) if file.exists()]
    if not found:
        raise UserError(f"init_from={init_from}: holds no adapter and no model.", "Give a run that has been trained.")
    return found


def start_from(recipe: Recipe, adapter: Attached) -> dict[str, str]:
    """Set the adapter's weights to those that `init_from` names; return the SHA-256 of each file, for the provenance.

    Raises:
        UserError: they are of another kind, rank or shape.
    """
    files = find_start(str(recipe.init_from))
    parts = adapter.parts if isinstance(adapter, Together) else (adapter,)
    try:
        used = [file for part in parts for file in _start(part, files, recipe)]
    except UserError as error:
        raise UserError(f"init_from={recipe.init_from}: {error.message}", error.hint) from error
    if not used:
        raise UserError(
            f"init_from={recipe.init_from}: {', '.join(file.name for file in files)} is nothing that "
            f"adapter.kind={recipe.adapter.kind} can begin with.",
            "Use the adapter.kind that it was trained with.",
        )
    files = [file for path in used for file in (sorted(path.rglob("*.safetensors")) if path.is_dir() else [path])]
    return {str(file): sha256_of(file) for file in files}


def _start(adapter: Attached, files: list[Path], recipe: Recipe) -> list[Path]:
    """Set one adapter's weights from those of the files that are of its kind; return them."""
    if isinstance(adapter, FullWeights):
        return _start_full(adapter, [file for file in files if file.is_dir()])
    single = [file for file in files if file.is_file()]
    if isinstance(adapter, LearnedWords):
        embeddings = [file for file in single if not _is_lora(file)]
        if embeddings:
            adapter.load_state_dict(_words(adapter.state_dict(), embeddings))
        return embeddings
    files = [file for file in single if _is_lora(file)]
    for file in files[:1]:
        if isinstance(recipe.adapter, Peft):
            spec, state, _ = read_peft(file)
            _require_same(spec, recipe.adapter)
            adapter.load_state_dict(state)
        else:
            adapter.load_state_dict(_scaled(adapter.state_dict(), _plain_lora(file)))
    return files[:1]


def _start_full(adapter: FullWeights, models: list[Path]) -> list[Path]:
    """Set the weights that learn to those of a model's folder."""
    for folder in models[:1]:
        model = load(str(folder), dtype=torch.float32, device="cpu")
        held = {f"{root}.{name}": p for root, m in model.modules.items() for name, p in m.named_parameters()}
        adapter.load_state_dict({name: held[name] for name in adapter.slot_parameters(0) if name in held})
    return models[:1]


def _plain_lora(file: Path) -> dict[str, Tensor]:
    """Return a file's LoRA; other changes of weights have no A and B to begin with."""
    lora = read_any_lora(file)
    if not lora.is_low_rank:
        kind = next(change.kind for change in lora.layers.values() if change.kind != "LoRA")
        raise UserError(f"{file.name} holds {kind}, and a LoRA cannot begin with it.", "Use a plain LoRA.")
    return lora.state_dict()


def _scaled(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA with the alpha of our own and the same effect.

    Raises:
        UserError: it is of another rank, or of other layers.
    """
    scaled = dict(state)
    for layer in sorted({name.rpartition(".")[0] for name in own}):
        if f"{layer}.lora_A" not in state:
            continue  # the adapter says which of all its layers is missing
        rank, found = (s[f"{layer}.lora_A"].shape[0] for s in (own, state))
        if rank != found:
            raise UserError(
                f"has rank {found} at {layer}, and the recipe asks for {rank}.", f"Set the rank to {found}."
            )
        alpha, A = own[f"{layer}.alpha"], state[f"{layer}.lora_A"]
        if A.numel() == own[f"{layer}.lora_A"].numel():  # a 1 x 1 convolution there, a linear layer here
            scaled[f"{layer}.lora_A"] = A.reshape(own[f"{layer}.lora_A"].shape)
        scaled[f"{layer}.lora_B"] = state[f"{layer}.lora_B"].float() * float(state[f"{layer}.alpha"] / alpha)
        scaled[f"{layer}.alpha"] = alpha
    return scaled


def _words(own: Mapping[str, Tensor], files: list[Path]) -> dict[str, Tensor]:
    """Return the vectors of every word of our own: its namesake's, or the only one's whatever it is called.

    Raises:
        UserError: a word is missing, or has another number of vectors.
    """
    found = dict(read_embedding(file) for file in files)
    words = {name.split(".", 2)[2] for name in own}
    if len(words) == len(found) == 1:
        found = dict(zip(words, found.values(), strict=True))
    state: dict[str, Tensor] = {}
    for name, tensor in own.items():
        _, encoder, word = name.split(".", 2)
        vectors = found.get(word, {}).get(encoder)
        if vectors is None:
            raise UserError(f"has no vectors for {word!r} ({', '.join(found)}).", "Use the token it was trained with.")
        if vectors.shape != tensor.shape:
            raise UserError(
                f"has {vectors.shape[0]} vectors of width {vectors.shape[1]}, and the recipe asks for "
                f"{tensor.shape[0]} of {tensor.shape[1]}.",
                f"Set the number of vectors to {vectors.shape[0]}, and use the same base.",
            )
        state[name] = vectors.float()
    return state


def _require_same(theirs: Peft, own: Peft) -> None:
    """Refuse an adapter of another method, or with other settings of it, whose weights would mean something else."""
    then, now = ({"method": spec.method, **spec.config(()).to_dict()} for spec in (theirs, own))
    for key in sorted(then.keys() | now.keys(), key=lambda key: (key != "method", key)):
        if then.get(key) != now.get(key):
            raise UserError(
                f"has {key}={then.get(key)}, and the recipe asks for {now.get(key)}.", "Use the settings it has."
            )


def _is_lora(file: Path) -> bool:
    """Return whether a file holds layers' changes, and not words."""
    header = read_header(file)
    return SPEC in header.metadata or layout_of(list(header.shapes)) is not None
