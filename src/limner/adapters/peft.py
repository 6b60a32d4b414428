"""Adapters of the peft library on any base: DoRA, LoHa, LoKr, OFT, VeRA and their kin, one class for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator
from torch import Tensor, nn

from limner.adapters.adapter import Attachable, SlotSettings
from limner.adapters.lora import LoRA
from limner.adapters.peft_layers import PeftLayers, attach_configs
from limner.errors import UserError
from limner.spec import Spec


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


_LORA = partial(Method, "LORA", alpha="lora_alpha")
_CAYLEY = ("use_cayley_neumann", "num_cayley_neumann_terms")
METHODS: dict[str, Method] = {
    "rslora": _LORA({"use_rslora": True}, convolutions=True),
    "dora": _LORA({"use_dora": True}, ("use_rslora",), convolutions=True),
    "pissa": _LORA({"init_lora_weights": "pissa"}, ("use_rslora",)),
    "olora": _LORA({"init_lora_weights": "olora"}, ("use_rslora",)),
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
        targets = {root: list(found) for root, found in self.find_targets(base.modules).items()}
        try:
            return attach_configs(
                base, {root: (self.config(paths), paths) for root, paths in targets.items()}, slots[0].seed
            )
        except (ValueError, TypeError, UserWarning) as error:
            raise _refused(self.method, error) from error

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


def attach_peft(base: Attachable, spec: Peft, state: Mapping[str, Tensor]) -> PeftLayers:
    """Attach a trained adapter given by its settings and its `state_dict`."""
    attached = spec.attach(base, [SlotSettings(seed=0)])
    attached.load_state_dict(state)
    return attached


def _refused(method: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".")
    return UserError(
        f"adapter.method={method}: peft refuses these settings ({reason}).",
        "Change adapter.rank or adapter.options, or choose other layers with adapter.targets.",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
