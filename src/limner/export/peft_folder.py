"""An adapter as peft's own folders, one for each part of the model, each loaded again by peft and compared."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.adapters.adapter import require_fit
from limner.adapters.deltas import Array, Delta, DoRA, LowRank
from limner.adapters.lora import find_layers
from limner.adapters.peft import METHODS
from limner.adapters.peft_layers import (
    MOVES_BASE,
    ROUNDING,
    Layer,
    PeftLayers,
    attach_configs,
    layers_at,
    start_of,
    tensors_beside,
)  # fmt: skip
from limner.errors import UserError
from limner.export.header_alphas import BESIDE, require_tried
from limner.export.kohya_lora import balanced
from limner.export.lora_names import canonical
from limner.export.modelspec import modelspec
from limner.export.peft_reading import AS_IT_BEGAN, PREFIX, WEIGHTS, PeftPart
from limner.export.tensors import header, write_tensors
from limner.families.family import Family
from limner.files import replacing

Configs = Mapping[str, tuple[Any, list[str]]]
"""peft's config of each part of the model, and the paths of the layers there."""
RESOLVED = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "feedforward_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "peft_type", "peft_version", "target_modules", "task_type",
}  # fmt: skip
"""Settings of a folder that only say which layers learn, which its tensors say too, or where it comes from."""
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


def parts_of_method(
    family: Family, configs: Configs, state: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Part]:
    """Return an adapter of one of peft's methods, rounded to `dtype`, by the parts of the model that it changes."""
    state = {name: tensor.to(dtype).float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    attached = attach_configs(family, configs)
    attached.load_state_dict(state)
    layers = dict(attached.layers)
    attached.detach()  # its layers still know the base's weights

    def tuned(part: str) -> Tuned:
        return lambda path, _layer: layers[f"{part}.{path}"].tuned()

    return {part: Part(config, _inside(part, state), paths, tuned(part)) for part, (config, paths) in configs.items()}


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
    if not all((entry / BESIDE).is_file() for entry in inside):
        raise UserError(f"{out}: is there already and no adapter of peft's.", "Name another folder: --out.")
    with replacing(out) as new:
        moved = 0.0
        for name, part in parts.items():
            _write(family.modules[name], part, new / name, {**family.facts, **about}, dtype)
            moved = max(moved, _compare(family.modules[name], part, new / name, f"{out}: {name}"))
        if moved == 0:
            raise UserError(f"{out}: the adapter has no effect: every change in it is zero.", "Train it first.")
    return out


def attach_peft_folder(family: Family, parts: Sequence[PeftPart]) -> PeftLayers:
    """Attach to a base what peft's folders hold, of whatever method, as peft itself reads them.

    Raises:
        UserError: it is not for this base, peft refuses the settings, or Limner does not know the method.
    """
    configs, state = held_by_peft(family, parts)
    attached = attach_configs(family, configs)
    attached.load_state_dict(state)
    return attached


def held_by_peft(family: Family, parts: Sequence[PeftPart]) -> tuple[Configs, dict[str, Tensor]]:
    """Return peft's config of each part, and what peft makes of the tensors of its folder, by Limner's names.

    Raises:
        UserError: as `attach_peft_folder`.
    """
    configs: dict[str, tuple[Any, list[str]]] = {}
    state: dict[str, Tensor] = {}
    for part in parts:
        if part.part not in family.modules:
            what, there = part.part or "no part that its names tell", ", ".join(family.modules)
            raise UserError(f"{part.folder}: is for {what}, and the base has {there}.",
                            "Use the base that it was trained on.")  # fmt: skip
        module = family.modules[part.part]
        tensors = {_peft_name(part, name): torch.from_numpy(array) for name, array in part.arrays().items()}
        paths = _paths(part, tensors)
        try:
            config = _config(part, paths)
            held = _held(module, config, paths, tensors, part.folder)
        except UserError:
            raise
        except Exception as error:  # peft says of settings that are not its own whatever comes to it
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"{part.folder}: peft refuses it ({reason}).", "Get the folder again.") from error
        configs[part.part] = config, paths
        state |= {f"{part.part}.{name}": tensor for name, tensor in held.items()}
    return configs, state


def layers_in(part: PeftPart) -> set[str]:
    """Return the paths of the layers that a folder changes, from the base's root."""
    return {f"{part.part}.{path}" for path in _paths(part, [_peft_name(part, name) for name in part.header.shapes])}


def _peft_name(part: PeftPart, name: str) -> str:
    """Return the name that peft's model of today's modules gives a tensor of a folder."""
    inside = name.partition(".")[2]
    path, mark, rest = inside.partition(_mark(part))
    layer = canonical(f"{part.part}.{path}") if mark else None
    place = layer.partition(".")[2] if layer else path
    return f"{PREFIX}{place}{mark}{rest}" if mark else f"base_model.{inside}"


def _mark(part: PeftPart) -> str:
    """Return how the names of a method's tensors begin after the layer's path.

    Raises:
        UserError: Limner does not know the method.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PeftType

    known = sorted({method.kind for method in METHODS.values()})
    if part.kind not in known:
        raise UserError(f"{part.folder}: is an adapter of peft's method {part.kind}, which Limner does not know.",
                        f"Known are {', '.join(known)}.")  # fmt: skip
    return f".{PEFT_TYPE_TO_PREFIX_MAPPING[PeftType[part.kind]]}"


def _paths(part: PeftPart, names: Iterable[str]) -> list[str]:
    mark = _mark(part)
    paths = {name.partition(mark)[0].removeprefix(PREFIX): None for name in names
             if name.startswith(PREFIX) and mark in name}  # fmt: skip
    if not paths:
        raise UserError(f"{part.folder}: has no tensor of peft's method {part.kind}.",
                        "The folder is not complete: get it again.")  # fmt: skip
    return list(paths)


def _config(part: PeftPart, paths: list[str]) -> Any:
    """Return peft's config as the folder has it, for layers that are named by their whole paths.

    Raises:
        UserError: it has a setting that the peft here does not know, or a start that is not there again.
    """
    import peft.mapping as known

    cls: Any = known.PEFT_TYPE_TO_CONFIG_MAPPING[known.PeftType[part.kind]]
    fields = {field.name for field in dataclasses.fields(cls)}
    given = {name: value for name, value in part.settings.items() if name in fields and name not in RESOLVED}
    strange = sorted(name for name, value in part.settings.items() if name not in fields | RESOLVED and value)
    if strange:
        raise UserError(f"{part.folder}: has the setting {strange[0]}, which the peft here does not know.",
                        "Install the peft that it was made with.")  # fmt: skip
    feedforward = part.settings.get("feedforward_modules")
    for patterns in (part.settings.get(name) for name in ("rank_pattern", "alpha_pattern")):
        require_tried(patterns if isinstance(patterns, dict) else (), part.folder)
    require_tried([feedforward] if isinstance(feedforward, str) else (), part.folder)
    if feedforward is not None:
        given["feedforward_modules"] = [path for path in paths if _chosen(path, feedforward)]
    return cls(target_modules=paths, inference_mode=True, **given)


def _chosen(path: str, patterns: str | list[str]) -> bool:
    """Tell whether peft's setting means a layer: a pattern of whole paths, or a list of how they end."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == end or path.endswith(f".{end}") for end in patterns)


def _held(
    module: nn.Module, config: Any, paths: list[str], tensors: Mapping[str, Tensor], where: Path
) -> dict[str, Tensor]:
    """Return what peft makes of a folder's tensors on a part of the base, which is left as it was.

    Raises:
        UserError: a layer or tensor is missing, left over or of another shape, or peft changes the base's weights.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    starts = [value for name, value in vars(config).items() if name.startswith("init_")]
    moves, known = any(start not in AS_IT_BEGAN for start in starts), any(start in MOVES_BASE for start in starts)
    weights = [(layer.weight, layer.weight.data, layer.weight.data.clone() if moves else None)
               for layer in layers_at(module, paths).values()]  # fmt: skip
    try:
        with _given_back(module, paths):
            model = PeftModel(module, config)
            if not known and any(before is not None and not torch.equal(own, before) for own, _, before in weights):
                raise UserError(f"{where}: peft begins it by changing the base's weights in a way that Limner does not "
                                "know.", "Save it with peft as a plain LoRA.")  # fmt: skip
            layers = layers_at(module, paths)
            start = {f"{path}.start_{x}": t for path, layer in layers.items() if known
                     for x, t in zip("BA", start_of(layer), strict=True)}  # fmt: skip
            _require_all(get_peft_model_state_dict(model), tensors, where)
            set_peft_model_state_dict(model, dict(tensors))
            held = tensors_beside(model.base_model, layers)
            return {
                name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in held.items()
            } | start
    finally:
        for own, original, before in weights:
            own.data = original if before is None else original.copy_(before)


def _require_all(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: Path) -> None:
    other = {name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape}
    wrong = sorted(wanted.keys() ^ found.keys() | other)
    if wrong:
        fits, first = len(wanted) - len(wanted.keys() & set(wrong)), wrong[0].removeprefix(PREFIX)
        raise UserError(f"{where}: {fits} of {len(wanted)} tensors fit this base (first that does not: {first}).",
                        "Use the base that it was trained on.")  # fmt: skip


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
        held = tensors_beside(model.base_model, layers_at(module, part.paths))
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
    write_tensors(folder / WEIGHTS[0], named, header(about, spec))


def _compare(module: nn.Module, part: Part, folder: Path, where: str) -> float:
    """Have peft load what was written, and compare every tensor and every layer; return the largest change.

    Raises:
        RuntimeError: a tensor is missing, left over or another one, or makes something else of a layer.
    """
    from peft import PeftModel

    bases = layers_at(module, part.paths)
    largest = 0.0
    with _given_back(module, part.paths):
        model = PeftModel.from_pretrained(module, str(folder))  # pyright: ignore[reportArgumentType]
        held = tensors_beside(model.base_model, layers_at(module, part.paths))
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
    targets = layers_at(module, paths)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # peft draws what is then overwritten
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
            yield
    finally:
        for path, target in targets.items():
            module.set_submodule(path, target)
        vars(module).pop("peft_config", None)
