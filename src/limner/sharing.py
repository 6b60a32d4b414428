"""What a run or a file holds, written for another program: adapter, embedding or model, each read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from limner.adapters.peft import METHODS
from limner.errors import UserError
from limner.export.diffusers_folder import ABOUT, write_diffusers_folder
from limner.export.diffusers_lora import write_diffusers
from limner.export.embedding import read_embedding, write_embedding
from limner.export.header_alphas import SPEC, method_of
from limner.export.kohya_lora import write_kohya
from limner.export.lora_check import require_effect
from limner.export.lora_files import AnyLora, about_of, read_any_lora
from limner.export.lora_names import layout_of
from limner.export.modelspec import HEADER
from limner.export.peft_adapter import as_lycoris, configs_of, read_peft
from limner.export.peft_folder import held_by_peft, parts_of_lora, parts_of_method, write_peft_folder
from limner.export.peft_reading import READ_AS_LORA, is_peft_folder, joined, open_peft_folder
from limner.export.single_file import write_single_file
from limner.families.foreign import check_lora_family, lora_width
from limner.families.load import load
from limner.families.recognise import FAMILIES, UNET
from limner.families.source import files_of, is_hub_name, locate
from limner.families.weights import precision_of, read_header, weights_files
from limner.files import replacing
from limner.merging import read_back, require_new
from limner.recipe import load_recipe
from limner.rundir import RunDir, read_json
from limner.spec import Spec
from limner.watch import Watch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FAMILY_NAMES = tuple(name for name, known in FAMILIES.items() if known.kohya.prefixes)
LORAS = ("diffusers", "kohya", "lycoris", "peft")
MODELS = ("diffusers", "single-file")
LAYOUTS = (*LORAS, "single-file", "embedding")
"""What can be written: an adapter by the names of four programs, a model as a folder or one file, a learned word."""
SETTINGS = {"peft": ("precision", "base"), "diffusers": ("precision", "shard")}
"""The settings that a layout heeds where it is not `precision` alone."""


class Chosen(Spec):
    """How something is written."""

    precision: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format; left out, the source's."""
    shard: float | None = Field(default=None, gt=0)
    """Largest size of a file of a diffusers folder in GB; left out, each part is one file."""
    base: str | None = None
    """The base that peft loads an adapter into; left out, the one that it was trained on."""


@dataclass(frozen=True)
class Reading:
    """What the user says of a LoRA's file, beside the file."""

    alpha: float | None
    family: str | None
    partial: bool
    watch: Watch

    def tell(self, lora: AnyLora) -> None:
        """Say what was left out."""
        for line in lora.tell_left_out():
            self.watch.say(line)


def export(
    source: str | Path,
    *,
    to: str,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    family: str | None = None,
    allow_partial: bool = False,
    watch: Watch | None = None,
) -> list[Path]:
    """Write what a run, a file or a base holds in the layout `to`; return what was written, each read back, compared.

    `settings` may name a `precision`; left out, it is the source's. A model's folder may be split into files of `shard`
    GB. peft loads what was written for it into the base, which is the one that the adapter was trained on unless `base`
    names another. `alpha` takes the place of what a LoRA's file says of it, and `family` names the one that it is for
    where the file does not tell. With `allow_partial`, what of a LoRA's file does not fit is left out and said.

    Raises:
        UserError: there is nothing to write in that layout, or the source cannot be read.
    """
    if to not in LAYOUTS:
        raise UserError(f"--to {to}: is no layout that Limner writes.", f"Use one of {', '.join(LAYOUTS)}.")
    if family is not None and family not in FAMILY_NAMES:
        raise UserError(f"--family {family}: is none that a LoRA can be written for.",
                        f"Use one of {', '.join(FAMILY_NAMES)}.")  # fmt: skip
    chosen = _chosen(to, settings or {})
    adapters, words, model = _holdings(str(source))
    if model and to in MODELS:
        return [_model(model, to, _place_of_model(out, str(source), model, to), chosen)]
    source = Path(source)
    if words and to == "embedding":
        return [
            _words(file, _place(out, source, f"{file.stem}-embedding", ".safetensors"), chosen.precision)
            for file in words
        ]
    if adapters and to in LORAS:
        how = Reading(alpha, family, allow_partial, watch or Watch())
        if chosen.shard:
            raise UserError("shard: an adapter is one file.", "Leave it out.")
        suffix = "" if to == "peft" else ".safetensors"
        first = _place(out, source, f"{adapters[0].stem}-{to}", suffix)
        places = [first, first.with_stem(f"{first.stem}-subject")]  # a few-step adapter's own, which goes with it
        if to == "peft":
            base = chosen.base or _base_of(source)
            return [_peft(file, place, chosen.precision, how, base)
                    for file, place in zip(adapters, places, strict=False)]  # fmt: skip
        return [_lora(file, to, place, chosen.precision, how)
                for file, place in zip(adapters, places, strict=False)]  # fmt: skip
    held = {"a LoRA": (adapters, LORAS), "a learned word": (words, ("embedding",)), "a model": (model, MODELS)}
    found = {what: layouts for what, (there, layouts) in held.items() if there}
    raise UserError(
        f"{source}: holds {' and '.join(found) or 'nothing that can be written'}, not for --to {to}.",
        f"Use --to {' or '.join(dict.fromkeys(x for layouts in found.values() for x in layouts))}." if found
        else "Give a run that has been trained, or a LoRA's file; limner inspect says what a file is.",
    )  # fmt: skip


def _chosen(to: str, settings: Mapping[str, Any]) -> Chosen:
    heeded = SETTINGS.get(to, ("precision",))
    for name in sorted(settings.keys() - set(heeded)):
        raise UserError(f"export: {name} is no setting of --to {to}.", f"It takes {'=..., '.join(heeded)}=...")
    precision = settings.get("precision")
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"precision={precision}: is no number format.", f"Use one of {', '.join(PRECISIONS)}.")
    return Chosen.of(settings, "export")


def _holdings(source: str) -> tuple[list[Path], list[Path], str | None]:
    """Return the adapter's files, the learned words' and the model that a run, a file or a base is.

    Of a few-step run the subject's that it was learned upon come after its own.
    """
    path, run = Path(source), RunDir(Path(source))
    if run.recipe.is_file():
        parts = (run, RunDir(run.subject))
        adapters = [one.adapter for one in parts if one.adapter.is_file()]
        model = str(run.model) if run.model.is_dir() else None
        return adapters, [file for one in parts for file in one.embeddings()], model
    if is_peft_folder(path):
        return [path], [], None
    if not path.is_file():
        if locate(source) is None and not is_hub_name(source):
            raise UserError(f"{source}: there is no such run or file.", "Give a run's folder, a LoRA's file or a base.")
        return [], [], source
    header = read_header(path)
    if SPEC in header.metadata or layout_of(list(header.shapes)):
        return [path], [], None
    return ([], [], source) if any(key.startswith(UNET) for key in header.shapes) else ([], [path], None)


def _place_of_model(out: Path | None, source: str, model: str, to: str) -> Path:
    """Return where to write a model: in the run's folder, or where the user says, and never over another one."""
    if model != source:
        return _place(out, Path(source), f"model-{to}", "" if to == "diffusers" else ".safetensors")
    if out is None:
        raise UserError(f"export: {source} is a base, and no place for its copy was named.", "Name one: --out PATH.")
    require_new(out)
    return out


def _place(out: Path | None, source: Path, name: str, suffix: str) -> Path:
    """Return where to write: the file or folder named, a file in the folder named, or beside the source."""
    if out is None:
        return (source if RunDir(source).recipe.is_file() else source.parent) / f"{name}{suffix}"
    return out / f"{name}{suffix}" if suffix and (out.is_dir() or not out.suffix) else out


def _read(file: Path, how: Reading) -> AnyLora:
    return read_any_lora(file, alpha=how.alpha, partial=how.partial)


def _lora(file: Path, to: str, out: Path, precision: str | None, how: Reading) -> Path:
    method = method_of(read_header(file).metadata) if file.is_file() else ""
    if to == "lycoris" and method in METHODS and METHODS[method].kind not in ("LORA", *READ_AS_LORA):
        return _peft_as_lycoris(file, out, precision, how)
    lora = _read(file, how)
    how.tell(lora)
    require_effect(file, lora.layers)
    dtype, about = PRECISIONS[precision or lora.precision], _about(lora, how.family)
    if lora.words:
        raise UserError(f"{file}: brings learned words along ({', '.join(lora.words)}), which no other layout holds.",
                        "Use the file as it is: generate --adapter reads it.")  # fmt: skip
    if to == "diffusers":
        if lora.biases:
            raise UserError(f"{file}: changes biases, which the diffusers layout cannot hold.", "Use --to kohya.")
        write_diffusers(lora.layers, out, about, dtype=dtype)
    else:
        write_kohya(lora.layers, out, about, biases=lora.biases, dtype=dtype, network=to)
    return out


def _peft_as_lycoris(file: Path, out: Path, precision: str | None, how: Reading) -> Path:
    """Write an adapter of one of peft's methods as the one of LyCORIS that does the same."""
    if how.alpha:
        raise UserError(f"--alpha: {file} is of a method of peft's that has none.", "Leave --alpha out.")
    spec, state, about = read_peft(file)
    layers = as_lycoris(spec, state, file)
    require_effect(file, layers)
    write_kohya(layers, out, about, dtype=PRECISIONS[precision or "float32"], network="lycoris")
    return out


def _peft(file: Path, out: Path, precision: str | None, how: Reading, base: str | None) -> Path:
    """Write an adapter of any kind as peft's folders."""
    theirs = open_peft_folder(file) if file.is_dir() else []
    header = joined(theirs) if theirs else read_header(file)
    method = method_of(header.metadata) if SPEC in header.metadata else ""
    method = method or " and ".join(sorted({part.called for part in theirs if not part.is_plain_lora}))
    if how.alpha and method:
        raise UserError(f"--alpha: {file} is of peft's method {method}, whose scale is known.", "Leave --alpha out.")
    if "LORA" in method:
        raise UserError(f"{file}: is of peft's {method}, and its own folder already.", "Use it as it is.")
    lora = None if method else _read(file, how)
    about = about_of(header.metadata)
    base = base or (str(about["base"]) if about.get("base") else None)
    if base is None:
        raise UserError(f"{file}: does not tell the base that peft loads it into.", "Name it: base=NAME|FOLDER|FILE.")
    if lora and (lora.biases or lora.words):
        what = "changes biases" if lora.biases else f"brings learned words along ({', '.join(lora.words)})"
        raise UserError(f"{file}: {what}, which peft's folders do not hold.", "Use the file as it is, or --to lycoris.")
    family = load(base, dtype=torch.float32, device="cpu")
    dtype = PRECISIONS[precision or (lora.precision if lora else "float32")]
    if lora:
        check_lora_family(file, lora_width(header), family.unet.config.cross_attention_dim)
        lora = lora.fitting(family.modules) if how.partial else lora
        how.tell(lora)
        parts = parts_of_lora(family, file, lora.layers, dtype)
    elif theirs:
        parts = parts_of_method(family, *held_by_peft(family, theirs), dtype)
    else:
        spec, state, _ = read_peft(file)
        parts = parts_of_method(family, configs_of(spec, state), state, dtype)
    return write_peft_folder(family, parts, out, about, dtype=dtype)


def _base_of(source: Path) -> str | None:
    """Return the base that a run was trained on."""
    run = RunDir(source)
    return load_recipe(run.recipe).base if run.recipe.is_file() else None


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


def _model(name: str, to: str, out: Path, chosen: Chosen) -> Path:
    """Write a whole model, each weight cast once, and compare it with what Limner's loader reads of it."""
    told = files_of(name, weights=True) / ABOUT
    about = read_json(told) if told.is_file() else {}
    dtype = PRECISIONS[chosen.precision or _precision_of_model(name)]
    family = load(name, dtype=dtype, device="cpu")
    with replacing(out) as new:
        if to == "diffusers":
            write_diffusers_folder(family, new, dtype=dtype, about=about, shard_gb=chosen.shard)
        else:
            write_single_file(family, new, dtype=dtype, about=about)
        for _ in read_back(family, new, dtype):
            pass
    return out


def _precision_of_model(name: str) -> str:
    """Return the number format that most of a UNet's weights have in their file."""
    path = files_of(name, weights=True)
    return precision_of(read_header(path if path.is_file() else weights_files(path / "unet")[0]))
