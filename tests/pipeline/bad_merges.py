"""Bad input of merge, extract, resize and bleed: the words of the command line, and what the line has to say."""

from __future__ import annotations

LORA = "{bad}/lora.safetensors"
COMBINING = {
    "strength with a part twice": (f"generate {{base}} --prompt x --adapter {LORA}:up=1,up=0", "'up=0' is one too many. Write FILE:0.8,up.1=0"),
    "merge of nothing": ("merge {base} --out {bad}/new", "nothing to merge .* with. Name a base and an adapter"),
    "merge of one LoRA": (f"merge {LORA} --out {{bad}}/new", "nothing to merge .*lora.safetensors with"),
    "merge without a place": (f"merge {{base}} {LORA}", "Missing option '--out'"),
    "merge into what is there": (f"merge {{base}} {LORA} --out {{bad}}/full", "--out: .*full is there already. Name another"),
    "merge into no base": (f"merge ./nowhere {LORA} --out {{bad}}/new", "base='./nowhere': there is no such folder or file"),
    "merge of a file that is not there": ("merge {base} {bad}/a.safetensors --out {bad}/new", "a.safetensors: there is no such file"),
    "merge of a LoRA that does not fit": (f"merge {{base}} {LORA} --out {{bad}}/new", "the LoRA does not fit this base"),
    "merge at a setting that is none": (f"merge {{base}} {LORA} --out {{bad}}/new precise=float32", r"merge: precise is not a setting. Did you mean precision\?"),
    "merge at a precision that is none": (f"merge {{base}} {LORA} --out {{bad}}/new precision=fp16", "merge: precision = 'fp16' is not allowed .*'float16'"),
    "merge to a layout that is none": (f"merge {{base}} {LORA} --to onnx --out {{bad}}/new", "--to onnx: is no layout of a model. Use diffusers or single-file"),
    "a single file in shards": (f"merge {{base}} {LORA} --to single-file --out {{bad}}/new shard=1", "shard: a single file is never split"),
    "LoRAs merged in a way that is none": (f"merge {LORA} {LORA} --out {{bad}}/new how=slerp", "how = 'slerp' is not allowed .*'concat'"),
    "rank without effect": (f"merge {LORA} {LORA} --out {{bad}}/new rank=4", "rank: has no effect with how=concat"),
    "LoRAs as a single file": (f"merge {LORA} {LORA} --out {{bad}}/new --to single-file", "--to: has no meaning for adapters alone"),
    "extract without a rank": ("extract {base} {base} --out {bad}/new precision=float32", "extract: give rank=N or energy=0.95"),
    "extract of nothing": ("extract {base} {base} --out {bad}/new rank=4", "extract: 0 modules differ between base and tuned; nothing to extract"),
    "extract against another family": ("extract {xl} {base} --out {bad}/new rank=4", "extract: .* is SDXL, and .* is SD 1.x"),
    "extract of a LoRA": (f"extract {LORA} {{base}} --out {{bad}}/new rank=4", "lora.safetensors': is a LoRA"),
    "resize to more": (f"resize {LORA} rank=9 --out {{bad}}/new", "has rank 2; rank=9 would add nothing"),
    "resize to nothing": (f"resize {LORA} rank=0 --out {{bad}}/new", "resize: rank = 0 is not allowed"),
    "bleed of one run": ("bleed {bad}/untrained", "one run bleeds into nothing"),
    "bleed of no runs": ("bleed {bad}/empty {bad}/none", "empty: is not a run folder"),
    "bleed before the training": ("bleed {bad}/untrained {bad}/untrained", "has no adapter yet. Train it first"),
}  # fmt: skip
