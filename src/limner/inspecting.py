"""What a file or folder is: a LoRA's layers, ranks and norms, an embedding, a model; read in a moment, nothing run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limner.errors import UserError
from limner.export.header_alphas import SPEC, method_of
from limner.export.lora_files import AnyLora, read_any_lora
from limner.export.lora_names import layout_of
from limner.export.peft_reading import PREFIX, READ_AS_LORA, is_peft_folder, joined, open_peft_folder
from limner.export.programs import Use, uses
from limner.families.foreign import what_is
from limner.families.recognise import FAMILIES, UNET, recognise
from limner.families.weights import PICKLED, Header, read_arrays, read_header
from limner.files import bytes_of
from limner.rundir import RunDir

GROUPS = {"attn": "attention", "ff": "feed-forward", "mlp": "feed-forward", "proj": "projections"}
"""What people call layers, by a word of their names; the others are convolutions and the like."""
LARGEST = 5
MAGIC = {b"GGUF": "a GGUF file", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"%PDF": "a PDF",
         b"RIFF": "a WebP picture", b"\x1f\x8b": "a gzip archive", b"\x89HDF": "an HDF5 file"}  # fmt: skip
"""First bytes of files that hold no weights, or that Limner does not read."""


@dataclass(frozen=True)
class Inspection:
    """What was found, for machines and for people."""

    facts: dict[str, Any]
    lines: list[str]


def inspect(path: Path) -> Inspection:
    """Say what a file, a model's folder or a run is.

    Raises:
        UserError: there is no such file, it is damaged, or it is nothing that can be told.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.", "Give the path of a file.")
    if path.is_dir():
        return _folder(path)
    if path.suffix not in PICKLED:
        _refuse_other(path)
    header = read_header(path)
    if layout_of(list(header.shapes)):
        return _lora(read_any_lora(path), header)
    if any(key.startswith(UNET) for key in header.shapes):
        return _model(path, header)
    if SPEC in header.metadata:
        method = method_of(header.metadata)
        what = f"an adapter of peft's method {method}, which Limner and peft load"
        return _told(path, what, {"kind": "peft", "method": method}, [_tensors(header)])
    found = what_is(header)
    own = header.metadata.get("modelspec.architecture", "").endswith("/textual-inversion")
    if own or (found and "embedding" in found[0]):
        return _embedding(path, header, found[0] if found else "a textual inversion embedding")
    what = found[0] if found else f"no model, LoRA or embedding that Limner knows (first tensor: {min(header.shapes)})"
    return _told(path, what, {"kind": "part" if found else "unknown"}, [_tensors(header)])


def _refuse_other(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(16)
    what = next((what for magic, what in MAGIC.items() if begin.startswith(magic)), None)
    if what or not begin:
        raise UserError(
            f"{path}: is {what or 'empty'}, and holds no weights that Limner reads.", "Give a .safetensors file."
        )


def _folder(path: Path) -> Inspection:
    if (path / "recipe.toml").is_file():
        run = RunDir(path)
        held = [file for file in (run.adapter, *run.embeddings(), run.model) if file.exists()]
        if not held:
            raise UserError(f"{path}: is a run without a result yet.", f"Train it first: limner train --resume {path}")
        parts = [inspect(file) for file in held]
        facts = {"path": str(path), "kind": "run", "holds": [part.facts for part in parts]}
        return Inspection(facts, [line for part in parts for line in part.lines])
    return _peft_folder(path) if is_peft_folder(path) else _model(path, None)


def _peft_folder(path: Path) -> Inspection:
    parts = open_peft_folder(path)
    header, kinds = joined(parts), sorted({part.called for part in parts})
    if all(part.is_plain_lora or part.kind in READ_AS_LORA for part in parts):
        return _lora(read_any_lora(path), header)
    what = f"an adapter of peft's method {' and '.join(kinds)}, which Limner and peft load"
    facts = {"kind": "peft", "method": kinds[0], "parts": [part.part for part in parts]}
    return _told(path, what, facts, [f"parts: {', '.join(facts['parts'])}", _tensors(header)])


def _model(path: Path, header: Header | None) -> Inspection:
    base = recognise(str(path))
    facts = {"kind": "model", "family": base.family, "prediction_type": base.prediction_type,
             "resolution_px": base.native_resolution_px, "inpainting": base.inpainting}  # fmt: skip
    return _told(path, base.line.partition(": ")[2], facts, [_tensors(header)] if header else [])


def _embedding(path: Path, header: Header, what: str) -> Inspection:
    vectors = {name: array for name, array in read_arrays(path).items() if array.ndim in (1, 2)}
    note = json.loads(header.metadata.get("limner", "{}"))
    names = [name for name in vectors if name not in ("emb_params", "clip_l", "clip_g", "string_to_param.*")]
    token = note.get("token") or (names[0] if len(names) == 1 else path.stem)
    norms = {name: round(float(np.linalg.norm(a, axis=-1).mean()), 4) for name, a in vectors.items()}
    facts = {"kind": "embedding", "token": token, "norms": norms, "base": note.get("base")}
    lengths = ", ".join(f"{name} {norm:g}" for name, norm in norms.items())
    return _told(path, what, facts, [f"word: {token}", f"mean length of its vectors: {lengths}", _tensors(header)])


def _lora(lora: AnyLora, header: Header) -> Inspection:
    kinds = Counter(change.kind for change in lora.layers.values())
    ranks = Counter(change.rank for change in lora.layers.values() if change.rank)
    alphas = Counter(round(c.scale * c.rank, 4) for c in lora.layers.values() if c.rank)
    norms = {layer: change.norm() for layer, change in lora.layers.items()}
    known = {layer: norm for layer, norm in norms.items() if not math.isnan(norm)}
    largest = dict(sorted(known.items(), key=lambda item: -item[1])[:LARGEST])
    family = FAMILIES[lora.family].called if lora.family else "a family that it does not tell"
    programs = uses([f"{PREFIX}{key}" if lora.path.is_dir() else key for key in header.shapes])
    programs += [Use("peft", len(header.shapes), len(header.shapes))] * lora.path.is_dir()
    facts: dict[str, Any] = {
        "kind": "lora", "family": lora.family, "layout": lora.layout, "kinds": dict(kinds), "ranks": dict(ranks),
        "alphas": dict(alphas), "alpha_is_assumed": lora.alpha_is_assumed, "precision": lora.precision,
        "layers": dict(sorted(Counter(map(_target, lora.layers)).items())), "trigger_words": _words(lora),
        "norms": {"parts": _sums(known, _part), "blocks": _sums(known, _block),
                  "largest": {layer: round(norm, 6) for layer, norm in largest.items()}},
        "base": lora.about.get("base") or lora.metadata.get("ss_sd_model_name"), "learned_words": sorted(lora.words),
        "has_effect": len(known) < len(norms) or any(known.values()), "few_steps": lora.about.get("few_steps"),
        "loads": [asdict(use) for use in programs],
    }  # fmt: skip
    lines = [
        f"{_listed(kinds)}; rank {_range(ranks)}, alpha {_range(alphas)}",
        f"layers: {_listed(facts['layers'])}",
        *([f"trigger words: {', '.join(facts['trigger_words'])}"] if facts["trigger_words"] else []),
        *([f"draws in few steps: {lora.about.get('usage_hint', '')}"] if facts["few_steps"] else []),
        *([f"learned words: {', '.join(facts['learned_words'])}"] if lora.words else []),
        *([f"base: {facts['base']}"] if facts["base"] else []),
        *([f"length of the change: {_numbers(facts['norms']['parts'])}"] if known else []),
        *([f"by block: {_numbers(facts['norms']['blocks'])}"] if known else []),
        *(f"largest: {norm:.4g} {layer}" for layer, norm in largest.items()),
        *_cautions(lora, facts),
        *(use.line for use in programs),
    ]
    return _told(lora.path, f"a LoRA for {family}, {lora.layout}, {lora.precision}", facts, lines)


def _cautions(lora: AnyLora, facts: Mapping[str, Any]) -> list[str]:
    said = lora.metadata.get("ss_network_alpha")
    noted = f" (its header says ss_network_alpha={said}: export --alpha heeds it)" if said else ""
    return [
        *([f"No alpha in file; assuming alpha = rank (scale 1.0){noted}."] if lora.alpha_is_assumed else []),
        *(["The adapter has no effect: every change in it is zero."] if not facts["has_effect"] else []),
    ]


def _words(lora: AnyLora) -> list[str]:
    """Return the words that it was trained on, as far as the header tells; of kohya's tags the five most frequent."""
    said = lora.about.get("token") or lora.metadata.get("modelspec.trigger_phrase")
    if said:
        return [str(said)]
    try:
        folders = json.loads(lora.metadata.get("ss_tag_frequency", "{}")).values()
        tags = Counter({tag: int(count) for folder in folders for tag, count in folder.items()})
    except (ValueError, AttributeError, TypeError):
        return []
    return [tag.strip() for tag, _ in tags.most_common(5)]


def _part(layer: str) -> str:
    return layer.partition(".")[0]


def _block(layer: str) -> str:
    words = layer.split(".")
    return f"{words[1].partition('_')[0]}.{words[2]}" if words[1] in ("down_blocks", "up_blocks") else (
        "mid" if words[1] == "mid_block" else words[0])  # fmt: skip


def _target(layer: str) -> str:
    group = next((name for word, name in GROUPS.items() if word in layer), "others")
    return f"{_part(layer)} {group}"


def _sums(norms: Mapping[str, float], name_of: Callable[[str], str]) -> dict[str, float]:
    """Return the length of the change of groups of layers: their squares add."""
    squares: dict[str, float] = {}
    for layer, norm in norms.items():
        squares[name_of(layer)] = squares.get(name_of(layer), 0.0) + norm**2
    return {name: round(math.sqrt(square), 6) for name, square in sorted(squares.items())}


def _tensors(header: Header) -> str:
    formats = Counter(header.dtypes.values())
    return f"{len(header.shapes)} tensors ({', '.join(f'{n} {name}' for name, n in formats.most_common())})"


def _told(path: Path, what: str, facts: Mapping[str, Any], lines: list[str]) -> Inspection:
    size = bytes_of(path)
    return Inspection(
        {"path": str(path), "bytes": size, "what": what, **facts},
        [f"{path}: {what}, {size / 2**20:.1f} MiB", *(f"  {line}" for line in lines)],
    )


def _range(numbers: Counter[Any]) -> str:
    """Return the numbers that occur, the first and the last where they are many."""
    found = sorted(numbers)
    return f"{found[0]:g} to {found[-1]:g}" if len(found) > 3 else ", ".join(f"{n:g}" for n in found) or "none"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
