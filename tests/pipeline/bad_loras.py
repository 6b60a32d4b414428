"""Bad input of the verbs on files for and from other programs: rows for `test_bad_input.py`, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARING = {
    "export of nothing": ("export", "Missing argument .RUN.FILE."),
    "export from nowhere": (
        "export {bad}/nowhere --to kohya",
        "nowhere: there is no such run or file. Give a run's folder",
    ),
    "export to nowhere": (
        "export {bad}/lora.safetensors --to comfy",
        "--to comfy: is no layout that Limner writes. Use one of diffusers, kohya",
    ),
    "export in no number format": (
        "export {bad}/lora.safetensors --to kohya precision=int4",
        "precision=int4: is no number format. Use one of float32, float16, bfloat16",
    ),
    "export with a setting of a run": (
        "export {bad}/lora.safetensors --to kohya steps=4",
        "export: steps is no setting of --to kohya. It takes precision=",
    ),
    "export of an untrained run": (
        "export {bad}/untrained --to kohya",
        "untrained: holds nothing that can be written.*Give a run that has been trained",
    ),
    "export of a LoRA as a model": (
        "export {bad}/lora.safetensors --to single-file",
        "holds a LoRA, not for --to single-file. Use --to diffusers or kohya",
    ),
    "export of a LoRA that does nothing": (
        "export {bad}/lora.safetensors --to kohya",
        "lora.safetensors: the adapter has no effect: every change in it is zero",
    ),
    "export for no family": (
        "export {bad}/acting.safetensors --to kohya --family flux",
        "--family flux: is none that a LoRA can be written for. Use one of",
    ),
    "export of half a LoRA": (
        "export {bad}/half.safetensors --to kohya",
        "half.safetensors: unet.conv_in has an A and no B",
    ),
    "export of two alphas": (
        "export {bad}/alphas.safetensors --to diffusers",
        "alpha tensor says 8, metadata says 16 for unet.conv_in.*--alpha N",
    ),
    "export over an alpha of nothing": (
        "export {bad}/acting.safetensors --to kohya --alpha -1",
        "Invalid value for '--alpha'",
    ),
    "export of a damaged file": (
        "export {bad}/nothing.safetensors --to kohya",
        "nothing.safetensors: is not a readable .safetensors file",
    ),
    "export of what changes biases": (
        "export {bad}/biases.safetensors --to diffusers --family sd15",
        "changes biases, which the diffusers layout cannot hold. Use --to kohya",
    ),
    "another family's LoRA": (
        "generate {base} --prompt x --adapter {bad}/flux.safetensors",
        "2 of 2 keys do not fit .first key .*It looks like a LoRA for Flux",
    ),
    "half of a LoRA": (
        "generate {base} --prompt x --adapter {bad}/half.safetensors",
        "half.safetensors: unet.conv_in has an A and no B",
    ),
    "a LoRA of other layers": (
        "generate {base} --prompt x --adapter {bad}/other.safetensors",
        "0 of 1 layers are in it .first that is not: unet.down_blocks.3",
    ),
    "a LoRA with too large a header": (
        "generate {base} --prompt x --adapter {bad}/claims.safetensors",
        "claims.safetensors: is not a readable",
    ),
    "peft's folder without weights": (
        "generate {base} --prompt x --adapter {bad}/peft-empty",
        "peft-empty: has adapter_config.json and no adapter_model.safetensors. The folder is not complete",
    ),
    "peft's folder with damaged settings": (
        "inspect {bad}/peft-damaged",
        "peft-damaged/adapter_config.json: is not readable .* Get the folder again",
    ),
    "peft's folder of nobody": (
        "export {bad}/peft-nobody --to kohya",
        "peft-nobody/adapter_config.json: names no peft_type. Give a folder that peft's save_pretrained wrote",
    ),
    "peft's folder of an unknown method": (
        "generate {base} --prompt x --adapter {bad}/peft-ADALORA",
        "peft-ADALORA: is an adapter of peft's method ADALORA, which Limner does not know. Known are C3A,",
    ),
    "peft's folder with a setting that changes a LoRA": (
        "generate {base} --prompt x --adapter {bad}/peft-odd",
        "peft-odd: is a LoRA with use_qalora=True, which Limner does not heed. Merge it with peft",
    ),
    "peft's folder of another base": (
        "generate {base} --prompt x --adapter {bad}/peft-OFT",
        "0 of 1 layers are in it .first that is not: down_blocks.3.attentions.0.to_q",
    ),
    "peft's folder of a method that is no LoRA": (
        "export {bad}/peft-OFT --to kohya",
        "peft-OFT: is an adapter of peft's method OFT, and no LoRA.* limner export --to peft",
    ),
    "peft's folder beneath a few-step adapter": (
        "train {pictures} --recipe few-step base={base} pictures.class_noun=x distill.adapter={bad}/peft-odd",
        "distill.adapter=.*peft-odd: is peft's folder. Make a file of it: limner export",
    ),
    "peft's folder with a pattern that never ends": (
        "generate {base} --prompt x --adapter {bad}/peft-pattern",
        r"peft-pattern: the pattern '\(a\|aa\)\*' of its settings is none that Limner tries",
    ),
    "peft's folders of strange parts": (
        "generate {base} --prompt x --adapter {bad}/peft-two",
        "peft-two: holds 2 adapters of peft's, and first is no part of a model. Name one of them",
    ),
    "inspect nothing": ("inspect", "Missing argument .FILE."),
    "inspect nowhere": ("inspect {bad}/nowhere", "nowhere: there is no such file or folder"),
    "inspect a damaged file": (
        "inspect {bad}/nothing.safetensors",
        "nothing.safetensors: is not a readable .safetensors file",
    ),
    "inspect a header that claims too much": (
        "inspect {bad}/claims.safetensors",
        "its header claims 1099511627776 bytes",
    ),
    "inspect a picture": ("inspect {pictures}/1.png", "1.png: is a PNG picture, and holds no weights"),
    "inspect a pickle": ("inspect {bad}/model.ckpt", "model.ckpt: is a bare pickle or damaged, and was not loaded"),
    "inspect an empty folder": ("inspect {bad}/empty", "is no model folder"),
    "inspect an untrained run": ("inspect {bad}/untrained", "is a run without a result yet. Train it first"),
}


def make_bad_loras(folder: Path) -> None:
    """Write LoRA files that cannot be used, and one that can."""
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    loras: dict[str, dict[str, torch.Tensor]] = {
        "acting": {
            f"{layer}.lora_{x}.weight": torch.ones(2, 32).reshape(shape)
            for x, shape in (("A", (2, 32)), ("B", (32, 2)))
        },
        "half": {"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)},
        "other": {f"unet.down_blocks.3.resnets.0.conv1.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
        "flux": {f"transformer.single_transformer_blocks.0.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
        "biases": {f"lora_unet_conv_out.{end}": torch.ones(4) for end in ("diff", "diff_b")},
    }
    for name, tensors in loras.items():
        save_file(tensors, folder / f"{name}.safetensors")
    conv_in = {"lora_down.weight": torch.ones(4, 4), "lora_up.weight": torch.ones(4, 4), "alpha": torch.tensor(8.0)}
    said = {"ss_network_alpha": "16", "ss_network_dim": "4"}
    save_file({f"lora_unet_conv_in.{n}": t for n, t in conv_in.items()}, folder / "alphas.safetensors", said)
    (folder / "claims.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    _make_bad_peft_folders(folder)


def _make_bad_peft_folders(folder: Path) -> None:
    """Write folders of peft's that cannot be used."""
    layer, lora = "base_model.model.down_blocks.3.attentions.0.to_q", {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    pair = {f"{layer}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    oft = {f"{layer}.oft_R.weight": torch.ones(2, 1)}
    held: dict[str, tuple[object, dict[str, torch.Tensor]]] = {
        "empty": (lora, {}), "nobody": ({}, pair), "ADALORA": ({"peft_type": "ADALORA"}, pair), "two/first": (lora, pair),
        "odd": ({**lora, "use_qalora": True}, pair), "OFT": ({"peft_type": "OFT", "oft_block_size": 2, "r": 0}, oft),
        "pattern": ({**lora, "alpha_pattern": {"(a|aa)*": 2}}, pair), "two/second": (lora, pair), "damaged": (lora, pair),
    }  # fmt: skip
    for name, (settings, tensors) in held.items():
        place = folder / f"peft-{name}"
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text(json.dumps(settings))
        if tensors:
            save_file(tensors, place / "adapter_model.safetensors")
    (folder / "peft-damaged" / "adapter_config.json").write_text("{")
