"""Adapters baked into a base, and the proof that the model which was written is base and change."""

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
from limner.adapter_file import AdapterFile, LoRAFile, WordsFile, read_adapter
from limner.adapter_set import AdapterSet
from limner.adapters.lora import find_layers
from limner.adapters.strength import Strength, as_strength
from limner.errors import UserError
from limner.export.diffusers_folder import write_diffusers_folder
from limner.export.peft_reading import is_peft_folder
from limner.export.single_file import write_single_file
from limner.families.family import Family
from limner.families.foreign import is_lora
from limner.families.load import load, parts_of, weights_of
from limner.families.recognise import is_refiner
from limner.families.weights import read_header
from limner.files import replacing
from limner.generate.draw import Sampling, draw, requests_for
from limner.generate.few_steps import HEADER, FewSteps
from limner.rundir import RunDir, read_json
from limner.spec import Spec
from limner.watch import Watch

LIMIT = 2.0
"""A merged model may draw a picture that differs by this much, of 255, from the adapters on the fly."""
CHECKED = Sampling(num_inference_steps=8)
"""How the pictures are drawn that a merged model is judged by."""
Paths = Sequence[tuple[str | Path, Strength | float]]


Pixels = NDArray[np.float32]


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
    to: str = "diffusers",
    settings: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    watch: Watch | None = None,
) -> Path:
    """Bake adapters, each at its strength, into a base, in float32 and cast once; return the model's path.

    What was written is compared, weight by weight, with the base's file and the adapters', and by a picture that is
    drawn with both. With `allow_partial`, what of a LoRA's file does not fit is left out and said.

    Raises:
        UserError: an adapter does not fit, or the merged model draws another picture; nothing is written then.
    """
    watch, spec, out = watch or Watch(), Saving.of(settings or {}, "merge"), Path(out)
    if to not in ("diffusers", "single-file"):
        raise UserError(f"--to {to}: is no layout of a model.", "Use diffusers or single-file.")
    if to == "single-file" and spec.shard:
        raise UserError("shard: a single file is never split.", "Leave it out, or use --to diffusers.")
    require_new(out)
    _refuse_words([file for path, _ in adapters for file in read_adapter(Path(path), partial=allow_partial)])
    base, dtype = model_of(base), getattr(torch, spec.precision)
    with watch.phase("load"):
        family = load(base, dtype=torch.float32, device=machine.place(spec.device, "float32").device)
    acting = AdapterSet(family)
    acting.set({acting.load(path, partial=allow_partial): strength for path, strength in adapters})
    for line in acting.left_out:
        watch.say(line)
    pairs = [
        (file.fitting(family) if allow_partial else file, as_strength(strength))
        for path, strength in adapters
        for file in read_adapter(Path(path), partial=allow_partial)
    ]
    files = [file for file, _ in pairs]
    with watch.phase("draw on the fly"):
        on_the_fly = picture(family, files, watch)
    acting.merge()
    about = {**family.facts, **words_of(files), "merged": names_in(adapters)}
    with replacing(out) as new:
        with watch.phase("write"):
            if to == "diffusers":
                write_diffusers_folder(family, new, dtype=dtype, about=about, shard_gb=spec.shard)
            else:
                write_single_file(family, new, dtype=dtype, about=about)
        with watch.phase("compare"):
            for weight, written in read_back(family, new, dtype):
                weight.data.copy_(written)
            count = _compare_with_sum(base, family, pairs, dtype)
            apart = apart_by(on_the_fly, picture(family, files, watch))
        watch.say(f"{count} weights of the model are the base's and the change")
        watch.say(_tell_apart(apart, out, spec.precision))
        if few := few_steps_in(files):
            watch.say(f"the model draws in few steps: {few.hint}")
    return out


def _tell_apart(apart: float | None, out: Path, precision: str) -> str:
    """Return a line about how far the merged model's picture is from the one on the fly, of 255.

    Raises:
        UserError: it is another picture.
    """
    if apart is None:
        return "no picture was drawn to compare: a refiner begins none"
    if apart > LIMIT:
        raise UserError(
            f"{out}: the merged {precision} model differs from the adapters on the fly by mean {apart:.1f}/255 "
            f"(limit {LIMIT:g}), and was not written.",
            "Set precision=float32, or use the adapters on the fly.",
        )
    return f"merged {precision} model differs from the adapters on the fly by mean {apart:.2f}/255 (limit {LIMIT:g})"


def model_of(name: str) -> str:
    """Return the folder of a run's whole model, or the name as it is."""
    run = RunDir(Path(name))
    return str(run.model) if run.recipe.is_file() and run.model.is_dir() else name


def is_base(name: str | Path) -> bool:
    """Tell whether a word names a whole model, and not an adapter's file or a run that has one."""
    path = Path(name)
    if path.is_file():
        return not is_lora(read_header(path))
    if is_peft_folder(path):
        return False
    return not RunDir(path).recipe.is_file() or model_of(str(name)) != str(name)


def read_back(family: Family, path: Path, dtype: torch.dtype) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Yield each weight of a family and what Limner's loader reads of it from a model that was written of the family.

    Raises:
        RuntimeError: it is not the weight in `dtype`, bit for bit.
    """
    for part, module in family.parts.items():
        written = weights_of(path, family.kind, part, module, dtype=torch.float32, device=family.device)
        for name, weight in module.named_parameters():
            if not torch.equal(written[name], weight.to(dtype).float()):
                raise RuntimeError(f"{path}: {part}.{name} reads back differently")
            yield weight, written[name]


@torch.no_grad()
def _compare_with_sum(
    base: str, family: Family, adapters: Sequence[tuple[AdapterFile, Strength]], dtype: torch.dtype
) -> int:
    """Add the adapters' changes to the base's own file and compare with the family's weights; return how many fit.

    What one of peft's methods makes of a layer is left to the picture.
    """
    rounding, count = torch.finfo(dtype), 0
    for part, module in parts_of(base):
        module.to(family.device)
        skipped: set[str] = set()
        for file, strength in adapters:
            if isinstance(file, LoRAFile):
                _add(file, strength, part, module)
            else:
                skipped |= {name.partition(".")[2] for name in file.taken if name.startswith(f"{part}.")}
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


def picture(family: Family, files: Sequence[AdapterFile], watch: Watch) -> Pixels | None:
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


def apart_by(a: Pixels | None, b: Pixels | None) -> float | None:
    """Return the mean difference of two pictures, of 255."""
    return None if a is None or b is None else float(np.abs(a - b).mean())


def words_of(files: Sequence[AdapterFile]) -> dict[str, Any]:
    """Return what several adapters are for, as one file says it: their words, and how a few-step adapter draws."""
    tokens = list(dict.fromkeys(token for file in files for token in file.tokens))
    nouns = list(dict.fromkeys(str(file.about["class_noun"]) for file in files if file.about.get("class_noun")))
    few = {HEADER: one.model_dump(mode="json")} if (one := few_steps_in(files)) else {}
    hint = {"usage_hint": one.hint} if one else {}
    return {"token": ", ".join(tokens), **few, **hint} | ({"class_noun": nouns[0]} if len(nouns) == 1 else {})


def few_steps_in(files: Sequence[AdapterFile]) -> FewSteps | None:
    """Return how adapters are drawn with of which one draws in few steps."""
    return next((one for file in files if (one := file.few_steps)), None)


def names_in(adapters: Paths) -> list[list[Any]]:
    """Return the adapters and their strengths as a header says them."""
    return [[Path(path).name, as_strength(strength).said] for path, strength in adapters]


def require_new(out: Path) -> None:
    """Refuse to write over what is there."""
    if out.exists():
        raise UserError(f"--out: {out} is there already.", "Name another.")


def _refuse_words(files: Sequence[AdapterFile]) -> None:
    words = [word for file in files if isinstance(file, WordsFile) for word in file.words]
    if words:
        raise UserError(
            f"merge: {', '.join(words)} is a learned word, which has its place in no model.",
            "Leave it out, and use its file beside the merged model.",
        )
