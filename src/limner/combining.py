"""Adapters merged with one another, taken out of a whole model, and brought to another rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from limner import machine
from limner.adapter_file import LoRAFile, read_adapter
from limner.adapter_set import AdapterSet
from limner.adapters.strength import Strength, as_strength, check_parts, names_of
from limner.errors import UserError
from limner.export.combine import Combining, State, change_of, combine, layers_of
from limner.export.combine import resize as resized
from limner.export.diffusers_folder import ABOUT
from limner.export.diffusers_lora import write_lora
from limner.export.extract import Extracted, changes
from limner.families.family import Family
from limner.families.load import load, parts_of
from limner.families.recognise import Recognised, recognise, refuse_unsupported
from limner.families.weights import fill
from limner.low_rank import Cut, Kept, percent, tell_kept
from limner.merging import Paths, apart_by, model_of, names_in, picture, require_new, words_of
from limner.rundir import read_json
from limner.watch import Watch

OF_USE = {"concat": (), "sum": (), "svd": ("rank", "energy"), "ties": ("rank", "energy", "density"),
          "dare": ("rank", "energy", "density", "seed")}  # fmt: skip
"""The settings that each way of merging heeds."""


class Resizing(Cut):
    """How a LoRA is brought to another rank."""

    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the file; it is computed in float32 and cast once."""


class Extracting(Resizing):
    """How a LoRA is taken out of a model."""

    device: str = "auto"
    """Where it is computed: auto, cpu, cuda."""


def merge_adapters(
    adapters: Paths,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    watch: Watch | None = None,
) -> tuple[Path, dict[str, Kept]]:
    """Make one LoRA of several, each at its strength; return its path, and how much of each layer's change it keeps.

    Raises:
        UserError: they are of different families or shapes, or are no plain LoRAs.
    """
    watch, spec, out = watch or Watch(), Combining.of(settings or {}, "merge"), Path(out)
    for name in ("rank", "energy", "density", "seed"):
        if getattr(spec, name) != Combining.model_fields[name].default and name not in OF_USE[spec.how]:
            raise UserError(f"{name}: has no effect with how={spec.how}.", "Leave it out, or use another how.")
    require_new(out)
    files = [_plain(Path(path), partial=allow_partial) for path, _ in adapters]
    for line in (line for file in files for line in file.left_out()):
        watch.say(line)
    families = {str(file.about["family"]): file.path for file in files if "family" in file.about}
    if len(families) > 1:
        told = " and ".join(f"{path} for {family}" for family, path in families.items())
        raise UserError(f"merge: the LoRAs are for different models ({told}).", "Merge LoRAs of one family.")
    states = [file.lora.state_dict() for file in files]
    with watch.phase("merge"):
        pairs = [(state, as_strength(s)) for state, (_, s) in zip(states, adapters, strict=True)]
        for file, (_, strength) in zip(files, adapters, strict=True):
            check_parts(as_strength(strength), layers_of(file.lora.state_dict()), str(file.path))
        state, kept = combine(pairs, spec)
    about = {**files[0].about, **words_of(files), "merged": names_in(adapters), "how": spec.how}
    write_lora(state, out, about, dtype=getattr(torch, spec.precision))
    if kept:
        watch.say(tell_kept(kept.values(), spec.cut([state for state, _ in pairs])))
    elif spec.how == "sum":
        watch.say(f"the sum of A and of B is {percent(_missed(pairs, state))} away from the sum of the changes")
    return out, kept


def extract(
    tuned: str, base: str, out: str | Path, *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None
) -> tuple[Path, dict[str, Kept]]:
    """Take a LoRA out of a whole model: how it differs from its base; return its path, and what each layer keeps.

    Raises:
        UserError: the models are equal, or of different families or shapes; nothing is written then.
    """
    watch, spec, out = watch or Watch(), Extracting.of(settings or {}, "extract"), Path(out)
    require_new(out)
    tuned, base = model_of(tuned), model_of(base)
    _require_one_family(recognise(tuned), recognise(base))
    at = machine.place(spec.device, "float32").device
    with watch.phase("load"):
        family = load(base, dtype=torch.float32, device=at)
    found, vae_differs = Extracted(), False
    with watch.phase("extract"):
        for done, (part, module) in enumerate(parts_of(tuned), start=1):
            own = family.parts[part]
            _require_one_shape(tuned, base, part, module, own)
            if part == "vae":
                vae_differs = any(True for _ in changes(own, module))
            else:
                found.take(part, own, module.to(at), spec)
            watch.progress(done, len(family.parts), part)
    if not found.state:
        also = f" ({len(found.others)} norms, biases or tables do, which no LoRA holds)" if found.others else ""
        raise UserError(f"extract: 0 modules differ between base and tuned{also}; nothing to extract.",
                        "Name the tuned model first, then the base that it was made from.")  # fmt: skip
    about = {**family.facts, **_about_model(Path(tuned)), "extracted_from": tuned}
    write_lora(found.state, out, about, dtype=getattr(torch, spec.precision))
    for line in _tell_extracted(found, spec, vae_differs=vae_differs):
        watch.say(line)
    with watch.phase("compare"):
        apart = _against_tuned(family, tuned, out, watch)
        if apart:
            watch.say("a picture drawn with it differs from the tuned model's by mean {:.1f}/255 (the base's own: "
                      "{:.1f})".format(*apart))  # fmt: skip
    return out, found.kept


def resize(
    path: str | Path, out: str | Path, *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None
) -> tuple[Path, dict[str, Kept]]:
    """Bring a LoRA to a smaller rank; return its path, and how much of each layer's change it keeps.

    Raises:
        UserError: it is no plain LoRA, or has no larger rank.
    """
    watch, spec, out = watch or Watch(), Resizing.of(settings or {}, "resize"), Path(out)
    require_new(out)
    file = _plain(Path(path))
    state = file.lora.state_dict()
    largest = max(state[f"{layer}.lora_A"].shape[0] for layer in layers_of(state))
    if spec.rank is not None and spec.rank > largest:
        raise UserError(f"{path}: has rank {largest}; rank={spec.rank} would add nothing.", "Give a smaller rank.")
    with watch.phase("resize"):
        new, kept = resized(state, spec)
    write_lora(new, out, {**file.about, "resized_from": largest}, dtype=getattr(torch, spec.precision))
    watch.say(f"from rank {largest}: {tell_kept(kept.values(), spec)}")
    return out, kept


def _against_tuned(family: Family, tuned: str, lora: Path, watch: Watch) -> tuple[float, float] | None:
    """Return how far a picture of base and LoRA, and one of the base alone, are from the tuned model's, of 255."""
    files = read_adapter(lora)
    alone = picture(family, files, watch)
    acting = AdapterSet(family)
    acting.set({acting.load(lora): 1.0})
    with_it = picture(family, files, watch)
    acting.set({})
    for part, module in parts_of(tuned):
        fill(family.parts[part], {n: t.to(family.device) for n, t in module.state_dict().items()}, where=tuned)
    wanted = picture(family, files, watch)
    apart, base_apart = apart_by(with_it, wanted), apart_by(alone, wanted)
    return None if apart is None or base_apart is None else (apart, base_apart)


def _tell_extracted(found: Extracted, spec: Cut, *, vae_differs: bool) -> Iterator[str]:
    """Yield lines about what a LoRA holds of a change, and what it does not."""
    yield f"{len(found.kept)} modules differ; {tell_kept(found.kept.values(), spec)}"
    groups: dict[str, list[Kept]] = {}
    for layer, kept in found.kept.items():
        groups.setdefault(names_of(layer)[0], []).append(kept)
    for group, own in sorted(groups.items()):
        share = sum(one.energy for one in own) / (sum(one.total for one in own) or 1.0)
        least = min((kept.share, layer) for layer, kept in found.kept.items() if names_of(layer)[0] == group)
        yield f"  {group}: {percent(share)} of {len(own)} modules (least: {percent(least[0])} of {least[1]})"
    if found.others:
        lost = sum(found.others.values())
        whole = lost + sum(kept.total for kept in found.kept.values())
        yield f"{len(found.others)} norms, biases and tables changed too, which no LoRA holds: {percent(lost / whole)}"
    if vae_differs:
        yield "the VAE differs too, and stays the base's"


def _plain(path: Path, *, partial: bool = False) -> LoRAFile:
    """Return a plain LoRA's file.

    Raises:
        UserError: it is an adapter of another kind.
    """
    for file in read_adapter(path, partial=partial):
        if isinstance(file, LoRAFile) and file.lora.is_low_rank:
            return file
    raise UserError(f"{path}: is no plain LoRA.", "Merge it into a base instead: limner merge BASE FILE --out MODEL")


def _missed(pairs: Sequence[tuple[State, Strength]], merged: State) -> float:
    """Return how far a LoRA is from the sum of several, as a share of that sum's length."""
    wrong = whole = 0.0
    for layer in layers_of(merged):
        wanted = sum((change_of(s, layer, f.of(layer)) for s, f in pairs if f"{layer}.lora_A" in s), torch.zeros(()))
        wrong += float((wanted - change_of(merged, layer)).square().sum())
        whole += float(wanted.square().sum())
    return (wrong / whole) ** 0.5 if whole else 0.0


def _about_model(path: Path) -> dict[str, Any]:
    """Return the words that a model of Limner's own was trained for."""
    said = read_json(path / ABOUT) if (path / ABOUT).is_file() else {}
    return {key: said[key] for key in ("token", "class_noun") if said.get(key)}


def _require_one_family(tuned: Recognised, base: Recognised) -> None:
    for one in (tuned, base):
        refuse_unsupported(one)
    if tuned.family != base.family:
        raise UserError(
            f"extract: {tuned.name} is {tuned.called}, and {base.name} is {base.called}.",
            "Use the base that the model was made from.",
        )


def _require_one_shape(tuned: str, base: str, part: str, module: nn.Module, own: nn.Module) -> None:
    shapes = [{name: tuple(p.shape) for name, p in one.named_parameters()} for one in (module, own)]
    wrong = next((name for name, shape in shapes[0].items() if shapes[1].get(name) != shape), None)
    if wrong or shapes[0].keys() != shapes[1].keys():
        raise UserError(f"extract: {tuned} and {base} are of different shapes (first: {part}.{wrong}).",
                        "Use the base that the model was made from.")  # fmt: skip
