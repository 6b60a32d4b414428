"""Random changes of a base's layers, and the files that other programs would have written of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from limner.adapters.deltas import Delta, Difference, DoRA, LoHa, LoKr, LowRank
from limner.adapters.relative import BOFT, IA3, OFT, GLoRA
from limner.export.lora_names import with_text_model
from limner.families.family import Family

RANK = 2


def draw(*shape: int) -> np.ndarray[Any, Any]:
    return 0.3 * torch.randn(*shape).numpy()


def low_rank(out: int, *inputs: int) -> LowRank:
    return LowRank(draw(RANK, *inputs), draw(out, RANK), alpha=1.0)


def loha(out: int, *inputs: int) -> LoHa:
    if len(inputs) == 3 and inputs[1] > 1:  # with cores, as LyCORIS writes convolutions when use_tucker is set
        parts = {f"hada_t{i}": draw(RANK, RANK, *inputs[1:]) for i in (1, 2)}
        shapes = {"a": (RANK, out), "b": (RANK, inputs[0])}
    else:
        parts, shapes = {}, {"a": (out, RANK), "b": (RANK, int(np.prod(inputs)))}
    return LoHa(parts | {f"hada_w{i}_{x}": draw(*shape) for i in (1, 2) for x, shape in shapes.items()}, alpha=1.0)


def lokr(out: int, *inputs: int) -> LoKr:
    one, two = (2, 2), (out // 2, inputs[0] // 2)
    if len(inputs) == 3 and inputs[1] > 1:
        core = {
            "lokr_t2": draw(RANK, RANK, *inputs[1:]),
            "lokr_w2_a": draw(RANK, two[0]),
            "lokr_w2_b": draw(RANK, two[1]),
        }
        return LoKr({"lokr_w1": draw(*one), **core}, factor=0.5)
    if len(inputs) == 1 and out % 4 == 0:
        parts = {"lokr_w2_a": draw(two[0], RANK), "lokr_w2_b": draw(RANK, two[1])}
        return LoKr({"lokr_w1": draw(*one), **parts}, factor=0.5)
    return LoKr({"lokr_w1": draw(*one), "lokr_w2": draw(*two, *inputs[1:])}, factor=0.7)


def dora(axis: int) -> Callable[..., DoRA]:
    def make(out: int, *inputs: int) -> DoRA:
        return DoRA(low_rank(out, *inputs), 1 + np.abs(draw((out, inputs[0])[axis])), axis)

    return make


def difference(out: int, *inputs: int) -> Difference:
    return Difference(np.float32(0.1) * draw(out, *inputs), "diff" if inputs else "w_norm")


def oft(out: int, *_inputs: int) -> OFT:
    return OFT(draw(out // 2, 2, 2), constraint=0.5, rescale=1 + draw(out))


def boft(out: int, *_inputs: int) -> BOFT:
    size = 4 if out % 8 == 0 else 2
    return BOFT(draw(1 + (out % 8 == 0), out // size, size, size))


def ia3(out: int, *inputs: int) -> IA3:
    return IA3(draw(out), on_input=False) if out > inputs[0] else IA3(draw(inputs[0]), on_input=True)


def glora(out: int, *inputs: int) -> GLoRA:
    shapes = {"a1": (inputs[0], RANK), "a2": (RANK, inputs[0]), "b1": (out, RANK), "b2": (RANK, *inputs)}
    ends = [1] * (len(inputs) - 1)
    parts = {f"{name}.weight": draw(*shape, *(ends if name != "b2" else ())) for name, shape in shapes.items()}
    return GLoRA(parts, alpha=1.0)


KINDS: dict[str, Callable[..., Delta]] = {
    "LoRA": low_rank, "LoHa": loha, "LoKr": lokr, "DoRA by outputs": dora(0), "DoRA by inputs": dora(1),
    "difference": difference, "OFT": oft, "BOFT": boft, "(IA)^3": ia3, "GLoRA": glora,
}  # fmt: skip


def changes(family: Family, kind: str, *, every: int = 1) -> dict[str, Delta]:
    """Return a random change of every n-th linear layer and convolution of a base."""
    found = {
        f"{root}.{path}": layer
        for root, module in family.modules.items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and "projection" not in path
    }
    weights = {name: layer.get_parameter("weight") for name, layer in list(found.items())[::every]}
    even = {"LoKr": 2, "OFT": 1, "BOFT": 1}.get(kind, 0)
    fitting = {n: w for n, w in weights.items() if not any(side % 2 for side in w.shape[:even])}
    return {name: KINDS[kind](*weight.shape) for name, weight in fitting.items()}


def save(tensors: Mapping[str, np.ndarray[Any, Any]], path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: torch.tensor(array) for name, array in tensors.items()}, path, metadata)
    return path


def _dotted(layer: str) -> tuple[str, str]:
    part, _, path = with_text_model(layer).partition(".")
    return part, path


def _kohya(prefixes: dict[str, str]) -> Callable[[str], str]:
    def name(layer: str) -> str:
        part, path = _dotted(layer)
        return f"{prefixes[part]}_{path.replace('.', '_')}"

    return name


def _processor(layer: str) -> str:
    """As diffusers 0.15 to 0.19: only attention, as a processor of its module."""
    part, path = _dotted(layer)
    module, _, last = path.removesuffix(".0").rpartition(".")
    if part == "unet":
        return f"unet.{module}.processor.{last}_lora"
    return f"{part}.{module}.{dict(q_proj='to_q', k_proj='to_k', v_proj='to_v', out_proj='to_out')[last]}_lora"


def _dots(layer: str) -> str:
    return ".".join(_dotted(layer))


def _other_parts(**names: str) -> Callable[[str], str]:
    return lambda layer: f"{names.get(_dotted(layer)[0], _dotted(layer)[0])}.{_dotted(layer)[1]}"


TE = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
ALL, UNET, TEXT, ATTENTION = "", r"^unet\.", r"^text_encoder", r"(to_q|to_out\.0|q_proj|out_proj)$"
NAMES: dict[str, tuple[Callable[[str], str], tuple[str, str], str]] = {
    "kohya": (_kohya(TE), KOHYA, ALL),
    "kohya's SDXL prefixes": (_kohya({**TE, "text_encoder": "lora_te1"}), KOHYA, ALL),
    "OneTrainer": (_other_parts(text_encoder="clip_l", text_encoder_2="clip_g"), KOHYA, ALL),
    "SimpleTuner": (lambda layer: f"lycoris_{_dotted(layer)[1].replace('.', '_')}", KOHYA, UNET),
    "diffusers": (_dots, PEFT, ALL),
    "diffusers since transformers 5.6": (lambda layer: layer, PEFT, ALL),
    "diffusers 0.20": (_dots, (".lora.down.weight", ".lora.up.weight"), ALL),
    "diffusers 0.19": (_dots, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), TEXT),
    "attention processors": (_processor, (".down.weight", ".up.weight"), ATTENTION),
    "ai-toolkit": (_other_parts(unet="diffusion_model"), PEFT, UNET),
    "peft": (
        lambda layer: f"base_model.model.{_dotted(layer)[1]}",
        (".lora_A.default.weight", ".lora_B.default.weight"),
        UNET,
    ),
}  # fmt: skip
"""What programs call a layer's A and B: the name of the layer, the ends of the two names; and which layers have any."""
HAS_ALPHA = ("kohya", "kohya's SDXL prefixes", "OneTrainer", "SimpleTuner")


def as_written_by(program: str, layers: Mapping[str, Delta]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a plain LoRA as a program would have written them; alpha is folded where it has none."""
    name, (down, up), _ = NAMES[program]
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for layer, change in layers.items():
        own, has_alpha = change.tensors(), program in HAS_ALPHA
        tensors[f"{name(layer)}{down}"] = own["lora_down.weight"]
        tensors[f"{name(layer)}{up}"] = own["lora_up.weight"] * np.float32(1.0 if has_alpha else change.scale)
        if has_alpha:
            tensors[f"{name(layer)}.alpha"] = own["alpha"]
    return tensors
