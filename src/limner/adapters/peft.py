"""Adapters of the peft library on any base: DoRA, LoHa, LoKr, OFT, VeRA and their kin, one class for all of them."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from limner.adapters.adapter import Attachable, Change, Layered, SlotSettings, require_fit
from limner.adapters.lora import LoRA
from limner.errors import UserError
from limner.seeds import seed_of
from limner.spec import Spec

ROUNDING = 1e-6
"""A change shorter than this share of the weight's own length is the rounding of an adapter that does nothing."""


class Method(NamedTuple):
    """What Limner knows of one method of peft."""

    kind: str
    """peft's name of the tuner."""
    fixed: Mapping[str, Any] = {}
    """Fields of peft's config that make the method what it is."""
    options: tuple[str, ...] = ()
    """Fields of peft's config that a user may set."""
    rank: str = "r"
    """Field of peft's config for the rank; "" where the method has none."""
    alpha: str = ""
    """Field of peft's config for alpha; "" where the method has none."""
    convolutions: bool = False
    """True where convolutions can learn too."""
    moves_base: bool = False
    """True where peft takes the adapter's first weights out of the base's (PiSSA)."""


_LORA = partial(Method, "LORA", alpha="lora_alpha")
_CAYLEY = ("use_cayley_neumann", "num_cayley_neumann_terms")
METHODS: dict[str, Method] = {
    "rslora": _LORA({"use_rslora": True}, convolutions=True),
    "dora": _LORA({"use_dora": True}, ("use_rslora",), convolutions=True),
    "pissa": _LORA({"init_lora_weights": "pissa"}, ("use_rslora",), moves_base=True),
    "olora": _LORA({"init_lora_weights": "olora"}, ("use_rslora",), moves_base=True),
    "mica": _LORA({"init_lora_weights": "mica"}, ("use_rslora",)),
    "delora": Method("DELORA", options=("delora_lambda",)),
    "deft": Method("DEFT", options=("decomposition_method", "init_scale", "para")),
    "glora": Method("GLORA", options=("config_A_B", "config_C", "config_D_E")),
    "gralora": Method("GRALORA", options=("gralora_k", "hybrid_r"), alpha="alpha"),
    "hira": Method("HIRA", convolutions=True),
    "miss": Method("MISS"),
    "peanut": Method("PEANUT", options=("depth", "act_fn", "scaling")),
    "randlora": Method("RANDLORA", options=("projection_prng_key", "sparse", "very_sparse"), alpha="randlora_alpha"),
    "tinylora": Method("TINYLORA", options=("u", "weight_tying", "projection_seed")),
    "vera": Method("VERA", options=("projection_prng_key", "d_initial")),
    "loha": Method("LOHA", options=("use_effective_conv2d",), alpha="alpha", convolutions=True),
    "lokr": Method(
        "LOKR",
        options=("use_effective_conv2d", "decompose_both", "decompose_factor"),
        alpha="alpha",
        convolutions=True,
    ),
    # peft's OFT adds up the overlapping windows of a 3 x 3 convolution, so it does not start as the identity there,
    # and its HRA takes minutes for each step on convolutions: both have linear layers only.
    "oft": Method("OFT", options=("oft_block_size", "block_share", *_CAYLEY), rank=""),
    "hra": Method("HRA", options=("apply_GS",)),
    "c3a": Method("C3A", {"init_weights": True}, ("block_size",), rank=""),
    "fourierft": Method("FOURIERFT", {"init_weights": True}, ("n_frequency", "scaling", "random_loc_seed"), rank=""),
    "waveft": Method(
        "WAVEFT",
        options=("n_frequency", "scaling", "wavelet_family", "use_idwt", "random_loc_seed", "proportional_parameters"),
        rank="",
    ),
    "ia3": Method("IA3", {"feedforward_modules": []}, rank="", convolutions=True),
    "road": Method("ROAD", options=("variant", "group_size"), rank=""),
    "supertuning": Method("SUPERTUNING", options=("sparsity", "select_top"), rank=""),
}


class Peft(Spec):
    """Adapters of the peft library, by the name of the method; they train one subject at a time."""

    kind: Literal["peft"] = "peft"
    method: Literal[
        "rslora", "dora", "pissa", "olora", "mica", "delora", "deft", "glora", "gralora", "hira", "miss", "peanut",
        "randlora", "tinylora", "vera", "loha", "lokr", "oft", "hra", "c3a", "fourierft", "waveft", "ia3", "road",
        "supertuning",
    ] = "dora"  # fmt: skip
    """How the chosen layers are changed: "dora" for likeness at a small rank, "lokr" for the smallest useful file,
    "oft" to keep the base's own geometry. The guide says what each is for."""
    rank: int | None = Field(default=None, ge=1)
    """Width of the update, for methods that have one. Left out, peft's own for the method."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength of the update, for methods that have one. Left out, the method's usual multiple of the rank."""
    targets: str | tuple[str, ...] = "attention"
    """Which layers learn: "attention", "transformer" (attention, feed-forward, projections), "all" (also convolutions),
    or a list of patterns such as ["*.attn2.to_k", "*.attn2.to_v"]. Many methods take linear layers only."""
    text_encoder: bool = False
    """Learn in the text encoder's attention too: the token then gets a meaning of its own. Helps with subjects."""
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the text encoder; left out, that of the run. Usually half of it or less."""
    options: dict[str, Any] = {}
    """Settings of the method's own, by peft's names, such as {decompose_factor = 8} for LoKr."""

    @field_validator("rank", "alpha")
    @classmethod
    def _has_one(cls, value: int | float | None, info: Any) -> int | float | None:
        """Refuse a rank or an alpha where the method has none."""
        method, field = info.data.get("method"), str(info.field_name)
        if value is not None and method in METHODS and not getattr(METHODS[method], field):
            own = METHODS[method].options
            raise ValueError(f"{method} has no {field}; leave it out{f' and see options: {_listed(own)}' * bool(own)}")
        return value

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        """Refuse options that the method does not have."""
        method = info.data.get("method")
        unknown = sorted(options.keys() - METHODS[method].options) if method in METHODS else []
        if unknown:
            allowed = _listed(METHODS[str(method)].options) or "none"
            raise ValueError(f"{method} has no option {unknown[0]}; its options are: {allowed}")
        return options

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Return the learning rate of each group."""
        return self._like_lora().rates(learning_rate)

    def attach(self, base: Attachable, slots: Sequence[SlotSettings]) -> PeftLayers:
        """Attach the method to the layers of the base that match; there is one slot.

        Raises:
            UserError: several slots, layers that the method cannot change, settings that peft refuses.
        """
        if len(slots) != 1:
            raise UserError(
                f"adapter.kind=peft: trains one subject at a time, not {len(slots)}.",
                "Use adapter.kind=lora to train many on one base.",
            )
        layers: dict[str, Layer] = {}
        tensors: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # peft draws from the global generator
            torch.manual_seed(seed_of(slots[0].seed, "peft"))
            for root, targets in self.find_targets(base.modules).items():
                built, held = _build(base.modules[root], targets, self.config(tuple(targets)), self.method)
                layers |= {f"{root}.{path}": layer for path, layer in built.items()}
                tensors |= {f"{root}.{name}": tensor for name, tensor in held.items()}
        return PeftLayers(layers, tensors)

    def find_targets(self, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Linear | nn.Conv2d]]:
        """Return the layers that the patterns choose, by the base's root and their path from it.

        Raises:
            UserError: a pattern matches nothing, or a chosen layer is a convolution and the method takes none.
        """
        found = self._like_lora().find_targets(modules)
        convolutions = [name for name, layer in found.items() if isinstance(layer, nn.Conv2d)]
        if convolutions and not METHODS[self.method].convolutions:
            raise UserError(
                f"adapter.targets: {self.method} changes linear layers only, and {len(convolutions)} of the "
                f"{len(found)} layers chosen are convolutions (first: {convolutions[0]}).",
                "Use adapter.targets=attention, or patterns that match linear layers only.",
            )
        by_root: dict[str, dict[str, nn.Linear | nn.Conv2d]] = {}
        for name, layer in found.items():
            root, _, path = name.partition(".")
            by_root.setdefault(root, {})[path] = layer
        return by_root

    def config(self, layers: Sequence[str]) -> Any:
        """Return peft's own config of the method for the given layers (paths inside one module).

        Raises:
            UserError: peft refuses the settings.
        """
        import peft.mapping as known  # importing it fills the mappings

        method = METHODS[self.method]
        cls: Any = known.PEFT_TYPE_TO_CONFIG_MAPPING[known.PeftType[method.kind]]
        usual = {field.name: field.default for field in dataclasses.fields(cls)}
        settings: dict[str, Any] = {}
        if method.rank:
            settings[method.rank] = self.rank or usual[method.rank]
        if method.alpha:
            settings[method.alpha] = self.alpha or settings["r"] * usual[method.alpha] / usual["r"]
        try:
            return cls(target_modules=sorted(layers), **settings, **method.fixed, **self.options)
        except (ValueError, TypeError) as error:
            raise _refused(self.method, error) from error

    def _like_lora(self) -> LoRA:
        """Return the LoRA that chooses the same layers and learns at the same rates."""
        return LoRA(
            targets=self.targets,
            text_encoder=self.text_encoder,
            text_encoder_learning_rate=self.text_encoder_learning_rate,
        )


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the base, and peft's beside it."""

    target: nn.Linear | nn.Conv2d
    """The base's own layer, still in its place."""
    tuner: Any
    """peft's layer around a twin of it that shares its weights."""
    start: tuple[Tensor, Tensor] | None
    """B and A (float32, scaled) that the method takes out of the base's weight, so that it starts as the identity."""

    def tuned(self) -> dict[str, Tensor]:
        """Return the layer's parameters with the change in them, float32."""
        twin = self.tuner.base_layer
        self.tuner.base_layer = copy.deepcopy(twin).float()
        self.tuner.merge()
        found = {name: p.detach().clone() for name, p in self.tuner.base_layer.named_parameters()}
        self.tuner.merged_adapters.clear()
        self.tuner.base_layer = twin
        if self.start:
            B, A = self.start
            found["weight"] -= B @ A
        return found


class PeftLayers(Layered):
    """Layers of peft that compute in the place of the base's, whose modules, names and weights stay as they are."""

    slots = 1

    def __init__(self, layers: Mapping[str, Layer], tensors: Mapping[str, Tensor]) -> None:
        self.layers, self._tensors = dict(layers), dict(tensors)
        self._learning = {name: t for name, t in tensors.items() if t.requires_grad}
        super().__init__(self.layers)
        for name, layer in self.layers.items():
            vars(layer.target)["forward"] = partial(self._forward, name, layer)  # found before the class's own

    def _forward(self, name: str, layer: Layer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, strength = partial(layer.tuner.base_layer, x, *args, **kwargs), self._strengths[name]
        if not self._enabled or strength == 0:
            return base()
        tuned = layer.tuner(x, *args, **kwargs)
        if layer.start:
            B, A = layer.start
            tuned = tuned - F.linear(F.linear(x.to(A.dtype), A), B).to(tuned.dtype)
        return tuned if strength == 1 else torch.lerp(base(), tuned, strength)

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        return dict(self._learning)

    def zero_grad(self) -> None:
        for parameter in self._learning.values():
            parameter.grad = None

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return all that peft holds beside the base, by `<root>.<path>.<peft's name>`: learned, and drawn for good."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        own = self._tensors
        require_fit(own, state)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        """Do nothing: there is one slot, and every row is its."""

    def changes(self, slot: int = 0) -> dict[str, Change]:
        squares: dict[str, float] = {}
        for name, layer in self.layers.items():
            tuned, group = layer.tuned(), name.partition(".")[0]
            for key, parameter in layer.target.named_parameters():
                moved = float((tuned[key] - parameter.float()).norm())
                rounding = ROUNDING * float(parameter.norm())
                squares[group] = squares.get(group, 0.0) + (moved**2 if moved > rounding else 0.0)
        own = {group: [t for name, t in self._learning.items() if name.startswith(f"{group}.")] for group in squares}
        return {
            group: Change(len(own[group]), sum(t.numel() for t in own[group]), math.sqrt(square))
            for group, square in squares.items()
        }

    def folded(self, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        for name, layer in self.layers.items():
            tuned = layer.tuned()
            for key, parameter in layer.target.named_parameters():
                yield parameter, torch.lerp(parameter.float(), tuned[key], self._strengths[name])

    def detach(self) -> None:
        self.unmerge()
        for layer in self.layers.values():
            del vars(layer.target)["forward"]
        self.layers.clear()


def attach_peft(base: Attachable, spec: Peft, state: Mapping[str, Tensor]) -> PeftLayers:
    """Attach a trained adapter given by its settings and its `state_dict`."""
    attached = spec.attach(base, [SlotSettings(seed=0)])
    attached.load_state_dict(state)
    return attached


def _build(
    module: nn.Module, targets: Mapping[str, nn.Linear | nn.Conv2d], config: Any, method: str
) -> tuple[dict[str, Layer], dict[str, Tensor]]:
    """Have peft build its layers around those of `module`, which is left as it was; return them and their tensors."""
    import peft.mapping as known

    moves_base = METHODS[method].moves_base
    weights = {path: target.weight.data.clone() for path, target in targets.items() if moves_base}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Invalid `")  # peft would take another block size than the one asked for
            tuner = known.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](module, config, "default")
        built: dict[str, Any] = {path: module.get_submodule(path) for path in targets}
    except (ValueError, TypeError, UserWarning) as error:
        raise _refused(method, error) from error
    finally:
        for path, target in targets.items():
            module.set_submodule(path, target)
        for path, weight in weights.items():
            targets[path].weight.data = weight
        vars(module).pop("peft_config", None)
    layers: dict[str, Layer] = {}
    tensors = tensors_beside(tuner, built)
    for path, layer in built.items():
        layer.eval()
        layer.base_layer = copy.copy(targets[path])
        vars(layer.base_layer)["_forward_hooks"] = OrderedDict()  # what other adapters add is added once, around it
        start = None
        if moves_base:
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            start = B.detach().float() * layer.scaling["default"], A.detach().float().clone()
            tensors |= {f"{path}.start_B": start[0], f"{path}.start_A": start[1]}
        layers[path] = Layer(targets[path], layer, start)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()  # peft takes the base's number format
    return layers, tensors


def tensors_beside(tuner: Any, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return what peft's tuner and its layers hold beside the base, by `<path>.<peft's name>`; what is shared, once."""
    tensors = {name: t for name, t in tuner.state_dict(keep_vars=True).items() if not name.startswith("model.")}
    for path, layer in layers.items():
        shared = {id(tensor) for tensor in tensors.values()}
        own = layer.state_dict(keep_vars=True, prefix=f"{path}.")
        tensors |= {n: t for n, t in own.items() if not n.startswith(f"{path}.base_layer.") and id(t) not in shared}
    return {re.sub(r"\.default(?=\.|$)", "", name): tensor for name, tensor in tensors.items()}


def _refused(method: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".")
    return UserError(
        f"adapter.method={method}: peft refuses these settings ({reason}).",
        "Change adapter.rank or adapter.options, or choose other layers with adapter.targets.",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
