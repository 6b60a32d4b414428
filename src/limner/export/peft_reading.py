"""peft's own folders, read: the settings and tensors of each part of the model, in Limner's names; nothing is run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from limner.errors import UserError
from limner.export.header_alphas import BESIDE, CONFIGS
from limner.export.lora_names import canonical
from limner.families.weights import Header, read_arrays, read_header

PARTS = ("unet", "text_encoder", "text_encoder_2")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
READ_AS_LORA = ("LOHA", "LOKR")
"""Other methods whose tensors are a change of weight by themselves."""
PREFIX = "base_model.model."
AS_IT_BEGAN = (True, False, "gaussian", "orthogonal", "lycoris", "mica", "eva")
"""Starts of an adapter that leave the base as it is, so that its tensors are all there is to it."""
PLAIN = {
    "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "alpha_pattern", "revision",
    "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
"""Settings of a LoRA that Limner heeds, and those that only training does."""


@dataclass(frozen=True)
class PeftPart:
    """One of peft's folders."""

    folder: Path
    part: str
    """The part of the model that it is for, "" where neither its name nor its tensors tell."""
    settings: Mapping[str, Any]
    """Its adapter_config.json."""
    weights: Path
    header: Header
    """What the weights' file says, its tensors called `<part>.<path in the part>`."""

    @property
    def kind(self) -> str:
        """Return peft's name of the method: LORA, OFT ..."""
        return str(self.settings["peft_type"])

    @property
    def called(self) -> str:
        """Return what to call the method: a LoRA that begins in a way of its own says so."""
        return (
            self.kind if self.kind != "LORA" or self.is_plain_lora else f"LORA ({self.settings['init_lora_weights']})"
        )

    @property
    def is_plain_lora(self) -> bool:
        """Whether its A and B, and DoRA's lengths, are all there is to it."""
        return self.kind == "LORA" and self.settings.get("init_lora_weights", True) in AS_IT_BEGAN

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return its tensors by the names of `header`."""
        return {_named(self.part, name): array for name, array in read_arrays(self.weights).items()}


def is_peft_folder(path: Path) -> bool:
    """Tell whether a folder is one of peft's, or holds some, and is no run that was exported into itself."""
    return path.is_dir() and not (path / "recipe.toml").is_file() and bool(_folders(path))


def open_peft_folder(path: Path) -> list[PeftPart]:
    """Return what a folder of peft's, or one that holds one for each part of the model, says of itself.

    Raises:
        UserError: a file is missing or damaged, or it is no adapter that Limner knows.
    """
    folders = _folders(path)
    strange = [one.name for one in folders if one != path and one.name not in PARTS]
    if strange and len(folders) > 1:
        raise UserError(f"{path}: holds {len(folders)} adapters of peft's, and {strange[0]} is no part of a model.",
                        f"Name one of them, or call them {', '.join(PARTS)}.")  # fmt: skip
    return [_open(folder) for folder in folders]


def joined(parts: list[PeftPart]) -> Header:
    """Return several parts as one header, with peft's settings of each as Limner's own files hold them."""
    shapes = {name: shape for one in parts for name, shape in one.header.shapes.items()}
    dtypes = {name: kind for one in parts for name, kind in one.header.dtypes.items()}
    metadata = {key: text for one in parts for key, text in one.header.metadata.items()}
    settings = {one.part: dict(one.settings) for one in parts}
    return Header(shapes, {**metadata, CONFIGS: json.dumps(settings)}, dtypes)


def refuse_unheeded(part: PeftPart) -> None:
    """Raise for a setting of a LoRA that would make another change of it than its A and B do.

    Raises:
        UserError: names the setting.
    """
    for name, value in sorted(part.settings.items()):
        if name not in PLAIN and value:
            raise UserError(f"{part.folder}: is a LoRA with {name}={value}, which Limner does not heed.",
                            "Merge it with peft (merge_and_unload), and take it out: limner extract.")  # fmt: skip


def _folders(path: Path) -> list[Path]:
    if (path / BESIDE).is_file():
        return [path]
    return sorted(one for one in path.iterdir() if (one / BESIDE).is_file())


def _open(folder: Path) -> PeftPart:
    try:
        settings = json.loads((folder / BESIDE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{folder / BESIDE}: is not readable ({error}).", "Get the folder again.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise UserError(f"{folder / BESIDE}: names no peft_type.", "Give a folder that peft's save_pretrained wrote.")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: has {BESIDE} and no {WEIGHTS[0]}.", "The folder is not complete: get it again.")
    found = read_header(weights)
    part = folder.name if folder.name in PARTS else _part_of(found)
    names = {name: _named(part, name) for name in found.shapes}
    if len(set(names.values())) < len(names):
        raise UserError(f"{weights}: has two tensors of one name.", "The file is damaged: get it again.")
    header = replace(
        found,
        shapes={names[name]: shape for name, shape in found.shapes.items()},
        dtypes={names[name]: kind for name, kind in found.dtypes.items()},
    )
    return PeftPart(folder, part, settings, weights, header)


def _part_of(header: Header) -> str:
    """Return the part of the model that the first layer belongs to whose name tells, "" where none does."""
    layers = map(canonical, header.shapes)
    return next((layer.partition(".")[0] for layer in layers if layer), "")


def _named(part: str, name: str) -> str:
    """Return what Limner calls a tensor: by the part, and its path there."""
    inside = re.sub(rf"^{re.escape(PREFIX)}|^base_model\.", "", name)
    return f"{part}.{inside}" if part else name
