"""LoRA files of every layout: what they change, layer by layer under diffusers' names, without torch to look at."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from limner.adapters.deltas import Array, Delta, LowRank
from limner.adapters.relative import OFT
from limner.errors import OR_WHAT_FITS, UserError
from limner.export.changes import Broken, build_change
from limner.export.header_alphas import SPEC, HeaderAlphas, method_of
from limner.export.lora_names import LAYERS_PER_BLOCK, canonical, layout_of, split_name
from limner.export.modelspec import HEADER
from limner.export.old_loras import cloneofsimo_name
from limner.export.peft_reading import READ_AS_LORA, PeftPart, is_peft_folder, joined, open_peft_folder, refuse_unheeded
from limner.families.recognise import FAMILIES, family_of_layers
from limner.families.weights import precision_of, read_arrays, read_header

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limner.adapters.adapter import Attached


OTHERS = {
    "joint_blocks": "SD3", "joint_transformer": "SD3", "double_blocks": "Flux", "single_blocks": "Flux",
    "single_transformer": "Flux", "blocks_0_cross_attn": "Wan", "transformer_blocks.0.attn.add": "SD3 or Flux",
    "lora_prior_unet": "Stable Cascade", "layers_0_attention": "Lumina",
}  # fmt: skip
"""Words in the names of other families' LoRAs."""
KOHYA = "ss_network_module"
"""Where kohya's tools say in a header what trained the file."""
WORDS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True)
class AnyLora:
    """What a LoRA's file says: the changes of weights, and its header."""

    path: Path
    layout: str
    """What people call the layout: kohya, diffusers, LyCORIS ..."""
    layers: Mapping[str, Delta]
    """The change of each layer's weight by its path in diffusers, such as "unet.conv_in"."""
    biases: Mapping[str, Array]
    """The change of the bias of some of these layers; few files have any."""
    words: Mapping[str, Mapping[str, Array]]
    """Learned words that the file brings along: vectors [vectors, width] by the text encoder's name."""
    metadata: Mapping[str, str]
    """The header as it stands."""
    precision: str
    """Number format of most of its tensors: float32, float16, bfloat16."""
    alpha_is_assumed: bool = False
    """True where nothing in the file says alpha, and alpha = rank was taken, as every program does."""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What Limner noted in the header: family, base, token, recipe; empty for other programs' files."""
    keys: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])
    """The names in the file of each layer's tensors."""
    left_out: tuple[str, ...] = ()
    """The names of tensors that were left out because they do not fit: only where that was asked for."""

    def delta(self, layer: str, weight: Tensor | None = None) -> Tensor:
        """Return the change of a layer's weight at strength 1, float32, shaped like `weight`.

        Without a weight in the shape that the file gives, which a 1 x 1 convolution and a linear layer do not share.
        DoRA's depends on the weight and needs it.
        """
        import torch

        own = None if weight is None else weight.detach().float().cpu().numpy()
        return torch.from_numpy(self.layers[layer].delta(own))

    def vectors(self) -> dict[str, dict[str, Tensor]]:
        """Return the learned words as tensors, as `attach_words` takes them."""
        import torch

        return {
            word: {part: torch.from_numpy(array.reshape(-1, array.shape[-1])) for part, array in parts.items()}
            for word, parts in self.words.items()
        }

    @property
    def family(self) -> str | None:
        """The family that it is for, as far as the file tells."""
        own = self.about.get("family")
        said = self.metadata.get("ss_base_model_version") or self.metadata.get("modelspec.architecture", "")
        widths = {name: one.shape[1] for name, one in self.layers.items() if len(one.shape) > 1 and one.shape[1] > 0}
        return str(own) if own in FAMILIES else family_of_layers(widths, said)

    @property
    def is_low_rank(self) -> bool:
        """Whether every change is a plain LoRA, so that our stacked LoRA holds the file."""
        return not self.biases and all(isinstance(change, LowRank) for change in self.layers.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the `state_dict` of a plain LoRA: `<layer>.lora_A`, `<layer>.lora_B` and `<layer>.alpha`."""
        import torch

        state: dict[str, Tensor] = {}
        for layer, change in self.layers.items():
            assert isinstance(change, LowRank), f"{layer} is {change.kind}"
            state |= {
                f"{layer}.lora_A": torch.from_numpy(change.A),
                f"{layer}.lora_B": torch.from_numpy(change.B),
                f"{layer}.alpha": torch.tensor(change.alpha),
            }
        return state

    def fitting(self, modules: Mapping[str, nn.Module]) -> AnyLora:
        """Return what of it fits a base; the rest is added to what was left out.

        Raises:
            UserError: nothing of it fits.
        """
        from limner.adapters.lora import find_layers, layers_that_fit

        shapes = {name: change.shape for name, change in self.layers.items()}
        fits = layers_that_fit(modules, shapes)
        if not fits:
            find_layers(modules, shapes)  # says so
        rest = tuple(key for name, keys in self.keys.items() if name not in fits for key in keys)
        return replace(
            self,
            layers={name: change for name, change in self.layers.items() if name in fits},
            biases={name: bias for name, bias in self.biases.items() if name in fits},
            keys={name: keys for name, keys in self.keys.items() if name in fits},
            left_out=(*self.left_out, *rest),
        )

    def tell_left_out(self) -> list[str]:
        """Return a line that says how much was left out, and a line for each name; none where nothing was."""
        if not self.left_out:
            return []
        total = len(self.left_out) + sum(len(keys) for keys in self.keys.values())
        left = f"{self.path}: {len(self.left_out)} of {total} keys do not fit and are left out"
        return [f"{left} (--allow-partial):", *(f"  {key}" for key in sorted(self.left_out))]

    def attach(self, modules: Mapping[str, nn.Module]) -> Attached:
        """Attach it to a base: as a stacked LoRA where it is a plain one, else as changes of whole weights.

        Raises:
            UserError: a layer is not in the base, or has another shape there.
        """
        from limner.adapters.dense import attach_deltas
        from limner.adapters.lora import attach_lora

        if self.is_low_rank:
            return attach_lora(modules, self.state_dict())
        return attach_deltas(modules, self.layers, self.biases)


def read_any_lora(path: Path, *, alpha: float | None = None, partial: bool = False) -> AnyLora:
    """Read a LoRA's file of any layout; `alpha` takes the place of what the file says of it.

    With `partial`, what does not belong to a LoRA, or only half of which is there, is left out instead of an error.

    Raises:
        UserError: the file is missing or damaged, is no LoRA of SD 1.x, SD 2.x or SDXL, or contradicts itself.
    """
    folders = _folders(path)
    header = joined(folders) if folders else read_header(path)
    about = about_of(header.metadata)
    by_layer, words, strange = _sort(header.shapes, header.metadata, about)
    if strange and SPEC in header.metadata:
        raise no_lora(path, method_of(header.metadata))
    if not by_layer or (strange and not partial):
        raise _not_read(path, strange, list(header.shapes))
    arrays, said = _finite_arrays(path, folders), HeaderAlphas(path, header.metadata)
    layers: dict[str, Delta] = {}
    biases: dict[str, Array] = {}
    assumed, left_out = False, list(strange)
    for layer, keys in by_layer.items():
        parts = {role: arrays[key] for role, key in keys.items()}
        try:
            layers[layer], bias, is_assumed = build_change(path, layer, parts, said, alpha)
        except Broken:
            if not partial:
                raise
            left_out += keys.values()
            continue
        biases |= {} if bias is None else {layer: bias}
        assumed = assumed or is_assumed
    if not layers:
        raise _not_read(path, left_out, list(header.shapes))
    if any(isinstance(one, OFT) for one in layers.values()) and "networks.oft" in header.metadata.get(KOHYA, ""):
        raise UserError(f"{path}: is an OFT of sd-scripts, which turns biases too; Limner turns weights alone.",
                        "Use one of LyCORIS (diag-oft), or one of peft (OFT).")  # fmt: skip
    if alpha is None:
        said.refuse_conflict({n: c.alpha for n, c in layers.items() if isinstance(c, LowRank)}, layers)
    return AnyLora(
        path, "peft's folder" if folders else layout_of(list(header.shapes)) or "unknown", layers, biases,
        {word: {part: arrays[key] for part, key in keys.items()} for word, keys in words.items()},
        header.metadata, precision_of(header), assumed, about,
        {layer: tuple(by_layer[layer].values()) for layer in layers}, tuple(left_out),
    )  # fmt: skip


def _folders(path: Path) -> list[PeftPart]:
    """Return peft's folders at a path, none where it is a file.

    Raises:
        UserError: it is another folder, or an adapter of peft's that is no LoRA, LoHa or LoKr as its tensors say.
    """
    if not path.is_dir():
        return []
    if not is_peft_folder(path):
        inside = path / "adapter.safetensors"
        raise UserError(f"{path}: is a folder.", f"Name the file: {inside if inside.is_file() else 'X.safetensors'}.")
    parts = open_peft_folder(path)
    for part in parts:
        if not part.is_plain_lora and part.kind not in READ_AS_LORA:
            raise no_lora(path, part.called)
        if part.kind == "LORA":
            refuse_unheeded(part)
    return parts


def _finite_arrays(path: Path, parts: Sequence[PeftPart]) -> dict[str, Array]:
    arrays = {name: array for part in parts for name, array in part.arrays().items()} if parts else read_arrays(path)
    broken = next((key for key, array in arrays.items() if not np.isfinite(array).all()), None)
    if broken:
        raise UserError(f"{path}: {broken} is not finite.", "The file is damaged, or its training failed: get another.")
    return arrays


def _sort(
    shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str], about: Mapping[str, Any]
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]], list[str]]:
    """Return the names of tensors by layer and role, those of learned words by word and encoder, and the strange."""
    layers_per_block = int(about.get("layers_per_block", LAYERS_PER_BLOCK))
    by_layer: dict[str, dict[str, str]] = {}
    words: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    for key in sorted(shapes):
        bundled = key.removeprefix("bundle_emb.").rpartition(".")
        if key.startswith("bundle_emb.") and bundled[2] in WORDS and len(shapes[key]) == 2:
            words.setdefault(bundled[0], {})[WORDS[bundled[2]]] = key
        elif metadata.get(key) == "<embed>" and len(shapes[key]) in (1, 2):  # cloneofsimo's
            words.setdefault(key, {})["text_encoder"] = key
        else:
            found = (
                cloneofsimo_name(key, shapes)
                or split_name(key, layers_per_block)
                or _scaling(key, shapes, layers_per_block)
            )
            if found is None or found[1] in by_layer.get(found[0], ()):
                strange.append(key)
            else:
                by_layer.setdefault(found[0], {})[found[1]] = key
    return by_layer, words, strange


def _scaling(key: str, shapes: Mapping[str, Sequence[int]], layers_per_block: int) -> tuple[str, str] | None:
    """Return the layer and the role of a `.weight` which `.on_input` beside it makes one of (IA)^3."""
    name = key.removesuffix(".weight")
    layer = canonical(name, layers_per_block) if name != key and f"{name}.on_input" in shapes else None
    return (layer, "weight") if layer else None


def about_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return Limner's own note in a header, nothing where there is none or another program's."""
    try:
        found = json.loads(metadata.get(HEADER, "{}"))
    except ValueError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def no_lora(path: Path, method: str) -> UserError:
    """Return the error that an adapter of one of peft's methods is no LoRA."""
    return UserError(
        f"{path}: is an adapter of peft's method {method}, and no LoRA.",
        "Limner draws with it as it is (generate --adapter); limner export --to peft writes it for peft.",
    )


def _not_read(path: Path, strange: Sequence[str], keys: Sequence[str]) -> UserError:
    first = strange[0] if strange else "none"
    family = next((family for word, family in OTHERS.items() if any(word in key for key in keys)), None)
    looks = f" It looks like a LoRA for {family}." if family else ""
    fits = OR_WHAT_FITS if len(strange) < len(keys) else ""
    return UserError(
        f"{path}: is not a LoRA that Limner reads: {len(strange)} of {len(keys)} keys do not fit "
        f"(first key that does not belong: {first}).{looks}",
        f"Use a LoRA for SD 1.5 or SDXL; limner inspect says what a file is{fits}.",
    )
