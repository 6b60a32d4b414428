"""What a run or a file holds, written for another program: LoRA, embedding or model, each read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from limner.errors import UserError
from limner.export.diffusers_folder import ABOUT, write_diffusers_folder
from limner.export.diffusers_lora import write_diffusers
from limner.export.embedding import read_embedding, write_embedding
from limner.export.header_alphas import SPEC
from limner.export.kohya_lora import write_kohya
from limner.export.lora_check import require_effect
from limner.export.lora_files import AnyLora, read_any_lora
from limner.export.lora_names import layout_of
from limner.export.modelspec import HEADER
from limner.export.single_file import write_single_file
from limner.families.load import load
from limner.families.recognise import FAMILIES
from limner.families.weights import read_header
from limner.rundir import RunDir, read_json

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FAMILY_NAMES = tuple(name for name, known in FAMILIES.items() if known.kohya.prefixes)
LORAS = ("diffusers", "kohya")
MODELS = ("diffusers", "single-file")
LAYOUTS = ("diffusers", "kohya", "single-file", "embedding")
"""What can be written: a LoRA by diffusers' or kohya's names, a model as a folder or one file, a learned word."""


def export(
    source: Path,
    *,
    to: str,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    family: str | None = None,
) -> list[Path]:
    """Write what a run or a file holds in the layout `to`; return what was written, each read back and compared.

    `settings` may name a `precision`; left out, it is the source's. `alpha` takes the place of what a LoRA's file says
    of it, and `family` names the one that it is for where the file does not tell.

    Raises:
        UserError: there is nothing to write in that layout, or the source cannot be read.
    """
    if to not in LAYOUTS:
        raise UserError(f"--to {to}: is no layout that Limner writes.", f"Use one of {', '.join(LAYOUTS)}.")
    settings = settings or {}
    unknown, precision = sorted(settings.keys() - {"precision"}), settings.get("precision")
    if unknown:
        raise UserError(f"export: {unknown[0]} is none of its settings.", "It takes precision=...")
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"precision={precision}: is no number format.", f"Use one of {', '.join(PRECISIONS)}.")
    if family is not None and family not in FAMILY_NAMES:
        raise UserError(f"--family {family}: is none that a LoRA can be written for.",
                        f"Use one of {', '.join(FAMILY_NAMES)}.")  # fmt: skip
    if not source.exists():
        raise UserError(f"{source}: there is no such run or file.", "Give a run's folder or a LoRA's file.")
    adapters, words, model = _holdings(source)
    if model and to in MODELS:
        return [_model(model, to, _place(out, source, f"model-{to}", "" if to == "diffusers" else ".safetensors"),
                       precision)]  # fmt: skip
    if words and to == "embedding":
        return [
            _words(file, _place(out, source, f"{file.stem}-embedding", ".safetensors"), precision) for file in words
        ]
    if adapters and to in LORAS:
        first = _place(out, source, f"{adapters[0].stem}-{to}", ".safetensors")
        places = [first, first.with_stem(f"{first.stem}-subject")]  # a few-step adapter's own, which goes with it
        return [_lora(file, to, place, precision, alpha, family)
                for file, place in zip(adapters, places, strict=False)]  # fmt: skip
    held = {"a LoRA": (adapters, LORAS), "a learned word": (words, ("embedding",)), "a model": (model, MODELS)}
    found = {what: layouts for what, (there, layouts) in held.items() if there}
    raise UserError(
        f"{source}: holds {' and '.join(found) or 'nothing that can be written'}, not for --to {to}.",
        f"Use --to {' or '.join(dict.fromkeys(x for layouts in found.values() for x in layouts))}." if found
        else "Give a run that has been trained, or a LoRA's file; limner inspect says what a file is.",
    )  # fmt: skip


def _holdings(source: Path) -> tuple[list[Path], list[Path], Path | None]:
    """Return the adapter's files, the learned words' and the model's folder that a run or a file is.

    Of a few-step run the subject's that it was learned upon come after its own.
    """
    if source.is_dir():
        run = RunDir.open(source)
        parts = (run, RunDir(run.subject))
        adapters = [one.adapter for one in parts if one.adapter.is_file()]
        return adapters, [file for one in parts for file in one.embeddings()], run.model if run.model.is_dir() else None
    header = read_header(source)
    if SPEC in header.metadata or layout_of(list(header.shapes)):
        return [source], [], None
    return [], [source], None


def _place(out: Path | None, source: Path, name: str, suffix: str) -> Path:
    """Return where to write: the file or folder named, a file in the folder named, or beside the source."""
    if out is None:
        return (source if source.is_dir() else source.parent) / f"{name}{suffix}"
    return out / f"{name}{suffix}" if suffix and (out.is_dir() or not out.suffix) else out


def _lora(file: Path, to: str, out: Path, precision: str | None, alpha: float | None, family: str | None) -> Path:
    lora = read_any_lora(file, alpha=alpha)
    require_effect(file, lora.layers)
    dtype, about = PRECISIONS[precision or lora.precision], _about(lora, family)
    if lora.words:
        raise UserError(f"{file}: brings learned words along ({', '.join(lora.words)}), which no other layout holds.",
                        "Use the file as it is: generate --adapter reads it.")  # fmt: skip
    if to == "diffusers":
        if lora.biases:
            raise UserError(f"{file}: changes biases, which the diffusers layout cannot hold.", "Use --to kohya.")
        write_diffusers(lora.layers, out, about, dtype=dtype)
    else:
        write_kohya(lora.layers, out, about, biases=lora.biases, dtype=dtype)
    return out


def _about(lora: AnyLora, family: str | None) -> dict[str, Any]:
    """Return what the new header says: Limner's own note, or what another program's header says of the same."""
    family = family or lora.family
    if family is None:
        raise UserError(f"{lora.path}: does not tell its family.", f"Name it: --family {' or '.join(FAMILY_NAMES)}.")
    if family not in FAMILY_NAMES:
        raise UserError(f"{lora.path}: is for {FAMILIES[family].called}.", "Use a LoRA for SD 1.5 or SDXL.")
    theirs = {"base": lora.metadata.get("ss_sd_model_name"), "token": lora.metadata.get("modelspec.trigger_phrase")}
    return {**{key: value for key, value in theirs.items() if value}, **lora.about, "family": family}


def _words(file: Path, out: Path, precision: str | None) -> Path:
    token, vectors = read_embedding(file)
    held = read_header(file).metadata.get(HEADER)
    if precision:
        vectors = {encoder: tensor.to(PRECISIONS[precision]) for encoder, tensor in vectors.items()}
    return write_embedding(vectors, out, token=token, about=json.loads(held) if held else {})


def _model(folder: Path, to: str, out: Path, precision: str | None) -> Path:
    about = read_json(folder / ABOUT)
    recipe = about.get("recipe", {})
    family = load(str(folder), dtype=torch.float32, device="cpu")
    dtype = PRECISIONS[precision or recipe.get("adapter", {}).get("save_precision", "float16")]
    write = write_diffusers_folder if to == "diffusers" else write_single_file
    return write(family, out, dtype=dtype, about=about)
