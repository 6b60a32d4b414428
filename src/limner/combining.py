"""Adapters merged into a base or with one another, taken out of a whole model, and brought to another rank."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import nn

from limner import machine
from limner.adapter_file import AdapterFile, LoRAFile, PeftFile, WordsFile, read_adapter
from limner.adapter_set import AdapterSet
from limner.adapters.lora import find_layers
from limner.adapters.strength import Strength, as_strength, check_parts, names_of
from limner.errors import UserError
from limner.export.combine import Combining, State, change_of, combine, layers_of
from limner.export.combine import resize as resized
from limner.export.diffusers_folder import ABOUT, write_diffusers_folder
from limner.export.diffusers_lora import write_lora
from limner.export.extract import Extracted, changes
from limner.export.single_file import write_single_file
from limner.families.family import Family
from limner.families.foreign import is_lora
from limner.families.load import load, parts_of, weights_of
from limner.families.recognise import Recognised, is_refiner, recognise, refuse_unsupported
from limner.families.weights import fill, read_header
from limner.files import replacing
from limner.generate.draw import Sampling, draw, requests_for
from limner.low_rank import Cut, Kept, percent, tell_kept
from limner.rundir import RunDir, read_json
from limner.spec import Spec
from limner.watch import Watch

LIMIT = 2.0
"""A merged model may draw a picture that differs by this much, of 255, from the adapters on the fly."""
CHECKED = Sampling(num_inference_steps=8)
"""How the pictures are drawn that a merged model is judged by."""
Paths = Sequence[tuple[str | Path, Strength | float]]


OF_USE = {"concat": (), "sum": (), "svd": ("rank", "energy"), "ties": ("rank", "energy", "density"),
          "dare": ("rank", "energy", "density", "seed")}  # fmt: skip
"""The settings that each way of merging heeds."""
Pixels = NDArray[np.float32]


class Resizing(Cut):
    """How a LoRA is brought to another rank."""

    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the file; it is computed in float32 and cast once."""


class Extracting(Resizing):
    """How a LoRA is taken out of a model."""

    device: str = "auto"
    """Where it is computed: auto, cpu, cuda."""


class Saving(Spec):
    """How a merged model is written."""

    precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Number format of its files; it is computed in float32 and cast once."""
    shard: float | None = Field(default=None, gt=0)
    """Largest size of a file of a diffusers folder in GB; left out, each part is one file."""
    device: str = "auto"
    """Where it is computed: auto, cpu, cuda."""


def merge(
    base: str,
    adapters: Paths,
    out: str | Path,
    *,
    to: Literal["diffusers", "single-file"] = "diffusers",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Path:
    """Bake adapters, each at its strength, into a base, in float32 and cast once; return the model's path.

    What was written is compared, weight by weight, with the base's file and the adapters', and by a picture that is
    drawn with both.

    Raises:
        UserError: an adapter does not fit, or the merged model draws another picture; nothing is written then.
    """
    watch, spec, out = watch or Watch(), Saving.of(settings or {}, "merge"), Path(out)
    if to not in ("diffusers", "single-file"):
        raise UserError(f"--to {to}: is no layout of a model.", "Use diffusers or single-file.")
    if to == "single-file" and spec.shard:
        raise UserError("shard: a single file is never split.", "Leave it out, or use --to diffusers.")
    _require_new(out)
    _refuse_words([file for path, _ in adapters for file in read_adapter(Path(path))])
    dtype = getattr(torch, spec.precision)
    with watch.phase("load"):
        family = load(base, dtype=torch.float32, device=machine.place(spec.device, "float32").device)
    acting = AdapterSet(family)
    acting.set({acting.load(path): strength for path, strength in adapters})
    files = [file for path, _ in adapters for file in read_adapter(Path(path))]
    with watch.phase("draw on the fly"):
        on_the_fly = _picture(family, files, watch)
    acting.merge()
    about = {**family.facts, **_said(files), "merged": _names(adapters)}
    with replacing(out) as new:
        with watch.phase("write"):
            if to == "diffusers":
                write_diffusers_folder(family, new, dtype=dtype, about=about, shard_gb=spec.shard)
            else:
                write_single_file(family, new, dtype=dtype, about=about)
        with watch.phase("compare"):
            _take_written(family, new, dtype)
            count = _compare_with_sum(base, family, adapters, dtype)
            apart = _apart(on_the_fly, _picture(family, files, watch))
        watch.say(f"{count} weights of the model are the base's and the change")
        if apart is None:
            watch.say("no picture was drawn to compare: a refiner begins none")
        elif apart > LIMIT:
            raise UserError(
                f"{out}: the merged {spec.precision} model differs from the adapters on the fly by mean {apart:.1f}/255 "
                f"(limit {LIMIT:g}), and was not written.",
                "Set precision=float32, or use the adapters on the fly.",
            )
        else:
            watch.say(f"merged {spec.precision} model differs from the adapters on the fly by mean {apart:.2f}/255 "
                      f"(limit {LIMIT:g})")  # fmt: skip
    return out


def merge_adapters(
    adapters: Paths, out: str | Path, *, settings: Mapping[str, Any] | None = None, watch: Watch | None = None
) -> tuple[Path, dict[str, Kept]]:
    """Make one LoRA of several, each at its strength; return its path, and how much of each layer's change it keeps.

    Raises:
        UserError: they are of different families or shapes, or are no plain LoRAs.
    """
    watch, spec, out = watch or Watch(), Combining.of(settings or {}, "merge"), Path(out)
    for name in ("rank", "energy", "density", "seed"):
        if getattr(spec, name) != Combining.model_fields[name].default and name not in OF_USE[spec.how]:
            raise UserError(f"{name}: has no effect with how={spec.how}.", "Leave it out, or use another how.")
    _require_new(out)
    files = [_plain(Path(path)) for path, _ in adapters]
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
    about = {**files[0].about, **_said(files), "merged": _names(adapters), "how": spec.how}
    write_lora(state, out, about, dtype=getattr(torch, spec.precision))
    if kept:
        watch.say(tell_kept(kept.values()))
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
    _require_new(out)
    run = RunDir(Path(tuned))
    tuned = str(run.model) if run.recipe.is_file() and run.model.is_dir() else tuned
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
    for line in _tell_extracted(found, vae_differs=vae_differs):
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
    _require_new(out)
    file = _plain(Path(path))
    state = file.lora.state_dict()
    largest = max(state[f"{layer}.lora_A"].shape[0] for layer in layers_of(state))
    if spec.rank is not None and spec.rank > largest:
        raise UserError(f"{path}: has rank {largest}; rank={spec.rank} would add nothing.", "Give a smaller rank.")
    with watch.phase("resize"):
        new, kept = resized(state, spec)
    write_lora(new, out, {**file.about, "resized_from": largest}, dtype=getattr(torch, spec.precision))
    watch.say(f"from rank {largest}: {tell_kept(kept.values())}")
    return out, kept


def is_base(name: str | Path) -> bool:
    """Tell whether a word names a whole model, and not an adapter's file or a run that has one."""
    path = Path(name)
    if path.is_file():
        return not is_lora(read_header(path))
    return not RunDir(path).recipe.is_file() or RunDir(path).model.is_dir()


def _take_written(family: Family, path: Path, dtype: torch.dtype) -> None:
    """Give the family the weights of the model that was written from it, after comparing them bit for bit."""
    for part, module in family.parts.items():
        written = weights_of(path, family.kind, part, module, dtype=torch.float32, device=family.device)
        for name, weight in module.named_parameters():
            if not torch.equal(written[name], weight.to(dtype).float()):
                raise RuntimeError(f"{path}: {part}.{name} reads back differently")
            weight.data.copy_(written[name])


@torch.no_grad()
def _compare_with_sum(base: str, family: Family, adapters: Paths, dtype: torch.dtype) -> int:
    """Add the adapters' changes to the base's own file and compare with the family's weights; return how many fit.

    What one of peft's methods makes of a layer is left to the picture.
    """
    rounding, count = torch.finfo(dtype), 0
    loras = [(file, as_strength(s)) for path, s in adapters for file in read_adapter(Path(path))]
    for part, module in parts_of(base):
        module.to(family.device)
        skipped: set[str] = set()
        for file, strength in loras:
            if isinstance(file, LoRAFile):
                _add(file, strength, part, module)
            elif isinstance(file, PeftFile):
                skipped |= {name.partition(".")[2] for name in file.layers if name.startswith(f"{part}.")}
        for (name, wanted), own in zip(module.named_parameters(), family.parts[part].parameters(), strict=True):
            if name.rpartition(".")[0] in skipped:
                continue
            room = 1e-6 * float(wanted.abs().max()) + rounding.smallest_normal
            if not torch.allclose(own, wanted, rtol=2 * rounding.eps, atol=room):
                raise RuntimeError(f"{part}.{name} of the merged model is not base + change")
            count += 1
    return count


def _add(file: LoRAFile, strength: Strength, part: str, module: nn.Module) -> None:
    """Add a file's change to one part of a base."""
    own = {name: change.shape for name, change in file.lora.layers.items() if name.startswith(f"{part}.")}
    for name, layer in (find_layers({part: module}, own) if own else {}).items():
        weight, bias = layer.get_parameter("weight"), file.lora.biases.get(name)
        weight += strength.of(name) * file.lora.delta(name, weight).to(weight)
        if bias is not None:
            layer.get_parameter("bias").add_(torch.from_numpy(bias).to(weight), alpha=strength.of(name))


def _picture(family: Family, files: Sequence[AdapterFile], watch: Watch) -> Pixels | None:
    """Draw one picture of what the adapters were trained for; None where the family begins no picture."""
    if is_refiner(family.kind):
        return None
    subjects = [" ".join([*file.tokens, str(file.about.get("class_noun") or "")]).strip() for file in files]
    prompt = " ".join(["a photo", *(["of"] if any(subjects) else []), " and ".join(filter(None, subjects))]).strip()
    with tempfile.TemporaryDirectory() as folder:
        made = draw(
            family, requests_for("free", [(prompt, prompt)], [0]), Path(folder), sampling=CHECKED, about={},
            resolution_px=family.native_resolution_px, progress=watch.progress,
        )  # fmt: skip
        return np.asarray(Image.open(made.parent / read_json(made)["images"][0]["file"]), np.float32)


def _apart(a: Pixels | None, b: Pixels | None) -> float | None:
    """Return the mean difference of two pictures, of 255."""
    return None if a is None or b is None else float(np.abs(a - b).mean())


def _against_tuned(family: Family, tuned: str, lora: Path, watch: Watch) -> tuple[float, float] | None:
    """Return how far a picture of base and LoRA, and one of the base alone, are from the tuned model's, of 255."""
    files = read_adapter(lora)
    alone = _picture(family, files, watch)
    acting = AdapterSet(family)
    acting.set({acting.load(lora): 1.0})
    with_it = _picture(family, files, watch)
    acting.set({})
    for part, module in parts_of(tuned):
        fill(family.parts[part], {n: t.to(family.device) for n, t in module.state_dict().items()}, where=tuned)
    wanted = _picture(family, files, watch)
    apart, base_apart = _apart(with_it, wanted), _apart(alone, wanted)
    return None if apart is None or base_apart is None else (apart, base_apart)


def _tell_extracted(found: Extracted, *, vae_differs: bool) -> Iterator[str]:
    """Yield lines about what a LoRA holds of a change, and what it does not."""
    yield f"{len(found.kept)} modules differ; {tell_kept(found.kept.values())}"
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


def _plain(path: Path) -> LoRAFile:
    """Return a plain LoRA's file.

    Raises:
        UserError: it is an adapter of another kind.
    """
    for file in read_adapter(path):
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


def _said(files: Sequence[AdapterFile]) -> dict[str, str]:
    """Return the words that several adapters were trained for, as one file says them."""
    tokens = list(dict.fromkeys(token for file in files for token in file.tokens))
    nouns = list(dict.fromkeys(str(file.about["class_noun"]) for file in files if file.about.get("class_noun")))
    return {"token": ", ".join(tokens)} | ({"class_noun": nouns[0]} if len(nouns) == 1 else {})


def _names(adapters: Paths) -> list[list[Any]]:
    return [[Path(path).name, as_strength(strength).said] for path, strength in adapters]


def _about_model(path: Path) -> dict[str, Any]:
    """Return the words that a model of Limner's own was trained for."""
    said = read_json(path / ABOUT) if (path / ABOUT).is_file() else {}
    return {key: said[key] for key in ("token", "class_noun") if said.get(key)}


def _require_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"--out: {out} is there already.", "Name another.")


def _refuse_words(files: Sequence[AdapterFile]) -> None:
    words = [word for file in files if isinstance(file, WordsFile) for word in file.words]
    if words:
        raise UserError(
            f"merge: {', '.join(words)} is a learned word, which has its place in no model.",
            "Leave it out, and use its file beside the merged model.",
        )


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
