"""An adapter as peft's own folders, one for each part of the model, each loaded again by peft and compared."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.adapters.adapter import require_fit
from limner.adapters.deltas import Array, Delta, DoRA, LowRank
from limner.adapters.lora import find_layers
from limner.adapters.peft import ROUNDING, Layer, Peft, attach_peft, tensors_beside
from limner.errors import UserError
from limner.export.kohya_lora import balanced
from limner.export.modelspec import modelspec
from limner.export.peft_adapter import layers_of
from limner.export.tensors import header, write_tensors
from limner.families.family import Family
from limner.files import replacing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Tuned = Callable[[str, nn.Module], Mapping[str, Tensor]]
"""What a layer's parameters become with the adapter, float32, by the layer's path and itself."""


@dataclass(frozen=True)
class Part:
    """What one part of the model is given."""

    config: Any
    """peft's config of the method."""
    tensors: Mapping[str, Tensor]
    """Tensors by `<path>.<peft's name>`, without the name that peft gives the adapter."""
    paths: list[str]
    """The layers that it changes."""
    tuned: Tuned


def parts_of_method(family: Family, spec: Peft, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Part]:
    """Return an adapter of one of peft's methods, rounded to `dtype`, by the parts of the model that it changes."""
    state = {name: tensor.to(dtype).float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    attached = attach_peft(family, spec, state)
    layers = dict(attached.layers)
    attached.detach()  # its layers still know the base's weights

    def tuned(part: str) -> Tuned:
        return lambda path, _layer: layers[f"{part}.{path}"].tuned()

    return {
        part: Part(spec.config(tuple(paths)), _inside(part, state), paths, tuned(part))
        for part, paths in layers_of(spec, state).items()
    }


def parts_of_lora(family: Family, path: Path, layers: Mapping[str, Delta], dtype: torch.dtype) -> dict[str, Part]:
    """Return a LoRA, or a DoRA with a length for each output, rounded to `dtype`, by the parts that it changes.

    Raises:
        UserError: a change is of another kind, or for a layer that the base has not.
    """
    layers = {name: _rounded(change, dtype) for name, change in layers.items()}
    there = find_layers(family.modules, {name: change.shape for name, change in layers.items()})
    changed = {id(layer): layers[name] for name, layer in there.items()}
    by_part = {
        part: {place: changed[id(layer)] for place, layer in module.named_modules() if id(layer) in changed}
        for part, module in family.modules.items()
    }
    return {part: _lora_part(family.modules[part], path, own) for part, own in by_part.items() if own}


def _rounded(change: Delta, dtype: torch.dtype) -> Delta:
    """Return a LoRA's change, or a DoRA's, in numbers that `dtype` holds; of any other kind, as it is."""

    def number(array: Array) -> Array:
        return torch.from_numpy(array).to(dtype).float().numpy()

    change = balanced(change, dtype)
    if isinstance(change, DoRA):
        return DoRA(_rounded(change.change, dtype), number(change.magnitude), change.axis)
    return LowRank(number(change.A), number(change.B), change.alpha) if isinstance(change, LowRank) else change


def write_peft_folder(
    family: Family, parts: Mapping[str, Part], out: Path, about: Mapping[str, Any], *, dtype: torch.dtype
) -> Path:
    """Write `<part>/adapter_config.json` and `<part>/adapter_model.safetensors`, have peft load them, and compare.

    Raises:
        UserError: `out` holds something else, or the adapter does nothing.
    """
    inside = list(out.iterdir()) if out.is_dir() else [out] * out.exists()
    if not all((entry / CONFIG).is_file() for entry in inside):
        raise UserError(f"{out}: is there already and no adapter of peft's.", "Name another folder: --out.")
    with replacing(out) as new:
        moved = 0.0
        for name, part in parts.items():
            _write(family.modules[name], part, new / name, {**family.facts, **about}, dtype)
            moved = max(moved, _compare(family.modules[name], part, new / name, f"{out}: {name}"))
        if moved == 0:
            raise UserError(f"{out}: the adapter has no effect: every change in it is zero.", "Train it first.")
    return out


def _lora_part(module: nn.Module, path: Path, layers: Mapping[str, Delta]) -> Part:
    from peft import LoraConfig

    tensors: dict[str, Tensor] = {}
    plain: dict[str, LowRank] = {}
    for name, change in layers.items():
        low = change.change if isinstance(change, DoRA) and change.axis == 0 else change
        if not isinstance(low, LowRank):
            what = "DoRA by inputs" if isinstance(change, DoRA) else change.kind
            raise UserError(f"{path}: {what} of another program has no place in peft (first: {name}).",
                            "Use --to lycoris.")  # fmt: skip
        plain[name], weight = low, module.get_submodule(name).get_parameter("weight")
        ends = [1] * (weight.ndim - 2)
        tensors[f"{name}.lora_A.weight"] = torch.from_numpy(low.A).reshape(low.rank, *weight.shape[1:])
        tensors[f"{name}.lora_B.weight"] = torch.from_numpy(low.B).reshape(*low.B.shape, *ends)
        if isinstance(change, DoRA):
            lengths = torch.from_numpy(change.magnitude)
            tensors[f"{name}.lora_magnitude_vector.weight"] = lengths.reshape(1, -1, *ends) if ends else lengths
    (rank, alpha), _ = Counter((one.rank, one.alpha) for one in plain.values()).most_common(1)[0]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=sorted(plain),  # pyright: ignore[reportArgumentType]
        rank_pattern={f"^{name}": one.rank for name, one in plain.items() if one.rank != rank},
        alpha_pattern={f"^{name}": one.alpha for name, one in plain.items() if one.alpha != alpha},
        use_dora=any(isinstance(change, DoRA) for change in layers.values()),
    )  # fmt: skip

    def tuned(name: str, layer: nn.Module) -> Mapping[str, Tensor]:
        weight = layer.get_parameter("weight").detach().float().cpu()
        return {"weight": weight + torch.from_numpy(layers[name].delta(weight.numpy()))}

    return Part(config, tensors, list(plain), tuned)


def _inside(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition(".")[2]: tensor for name, tensor in state.items() if name.startswith(f"{part}.")}


def _write(module: nn.Module, part: Part, folder: Path, about: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Write one part's config, and its tensors under the names that peft gives them."""
    from peft import PeftModel, get_peft_model_state_dict

    with _given_back(module, part.paths):
        model = PeftModel(module, part.config)  # pyright: ignore[reportArgumentType]
        held = tensors_beside(model.base_model, _layers(module, part.paths))
        require_fit(held, part.tensors)
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(part.tensors[name])
        named = {
            name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
            for name, tensor in get_peft_model_state_dict(model).items()
        }  # copies: a file has no room for what layers share
        config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = str(about["base"]), True
    config.target_modules = sorted(part.paths)  # peft shortens them to what is enough for this very model
    config.save_pretrained(str(folder))
    spec = modelspec(about, adapter="lora" if config.peft_type == "LORA" else config.peft_type.lower(),
                     implementation="peft")  # fmt: skip
    write_tensors(folder / WEIGHTS, named, header(about, spec))


def _compare(module: nn.Module, part: Part, folder: Path, where: str) -> float:
    """Have peft load what was written, and compare every tensor and every layer; return the largest change.

    Raises:
        RuntimeError: a tensor is missing, left over or another one, or makes something else of a layer.
    """
    from peft import PeftModel

    bases = _layers(module, part.paths)
    largest = 0.0
    with _given_back(module, part.paths):
        model = PeftModel.from_pretrained(module, str(folder))  # pyright: ignore[reportArgumentType]
        held = tensors_beside(model.base_model, _layers(module, part.paths))
        require_fit(held, part.tensors)
        for name, tensor in part.tensors.items():
            if not torch.equal(held[name].detach().cpu(), tensor.detach().cpu()):
                raise RuntimeError(f"{where}: peft reads {name} back differently")
        for path, base in bases.items():
            assert isinstance(base, nn.Linear | nn.Conv2d), f"{path} is {type(base).__name__}"
            found = Layer(base, module.get_submodule(path), None).tuned()
            for key, wanted in part.tuned(path, base).items():
                before = base.get_parameter(key).detach().float()
                largest = max(largest, _moved(before, wanted, found[key], f"{where}.{path}"))
    return largest


def _moved(before: Tensor, wanted: Tensor, found: Tensor, where: str) -> float:
    """Return the length of a change, 0 where it is rounding, after comparing what was found with what was wanted."""
    size, change, off = (float(one.norm()) for one in (before, wanted - before, found - wanted))
    if not off <= 1e-6 * change + 2 * torch.finfo(torch.float32).eps * size:
        raise RuntimeError(f"{where}: peft makes {found.norm():g} of it, and not {wanted.norm():g} ({off:g} apart)")
    return change if change > ROUNDING * size else 0.0


@contextmanager
def _given_back(module: nn.Module, paths: list[str]) -> Iterator[None]:
    """Within this block peft may change a model; afterwards it has its own layers again."""
    targets = _layers(module, paths)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # peft draws what is then overwritten
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
            yield
    finally:
        for path, target in targets.items():
            module.set_submodule(path, target)
        vars(module).pop("peft_config", None)


def _layers(module: nn.Module, paths: list[str]) -> dict[str, nn.Module]:
    return {path: module.get_submodule(path) for path in paths}
