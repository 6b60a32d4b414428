"""Which keys of a LoRA's file each program uses, by the rules of its own loader, as data."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

KOHYA_ENDS = r"\.(lora_(down|up)\.weight|alpha)"
LYCORIS_ENDS = r"\.(lora_mid\.weight|dora_scale|hada_[wt]\w+|lokr_[wt]\w+|diff|diff_b|w_norm|b_norm|oft_blocks|rescale)"
PEFT_ENDS = r"\.(lora_[AB]|lora\.(down|up)|lora_linear_layer\.(down|up))\.weight|_lora\.(down|up)\.weight"


@dataclass(frozen=True)
class Program:
    """A program that loads LoRA files."""

    name: str
    accepts: str
    """Pattern of the keys that it uses, in the words of its own key map."""
    source: str
    """Where that map is, in the program's repository."""
    all_or_none: str = ""
    """Pattern of keys that make it refuse a whole file when there is any other key."""
    caution: str = ""
    """Pattern of keys that it takes and does not apply as they were trained."""
    because: str = ""
    """What it does with those."""


PROGRAMS = (
    Program(
        "diffusers",
        rf"(lora_(unet|te|te1|te2)_[^.]+{KOHYA_ENDS}|(unet|text_encoder|text_encoder_2)\..*"
        rf"({PEFT_ENDS}|\.lora_magnitude_vector(\.weight)?))",
        "src/diffusers/loaders/lora_conversion_utils.py and lora_pipeline.py (0.42)",
        all_or_none=r"lora_(unet|te|te1|te2)_",
        caution=r".*\.dora_scale",
        because="drops DoRA's magnitudes and draws a plain LoRA",
    ),
    Program(
        "kohya sd-scripts",
        rf"lora_(unet|te|te1|te2)_[^.]+{KOHYA_ENDS}",
        "networks/lora.py: load_state_dict; SDXL in both kinds of names by convert_diffusers_to_sai_if_needed",
    ),
    Program(
        "A1111 and Forge",
        rf"lora_(unet|te|te1|te2)_[^.]+({KOHYA_ENDS}|{LYCORIS_ENDS}|\.(weight|on_input|oft_diag))",
        "extensions-builtin/Lora/networks.py: convert_diffusers_name_to_compvis, and network_*.py",
        caution=r".*\.dora_scale",
        because="takes DoRA's magnitudes as one for each input",
    ),
    Program(
        "ComfyUI",
        rf"((lora_(unet|te|te1|te2)|lycoris)_[^.]+({KOHYA_ENDS}|{LYCORIS_ENDS}|\.[ab][12]\.weight)"
        rf"|((unet|(model\.)?diffusion_model)\.|text_encoder(_2)?\.text_model\.).*"
        rf"({PEFT_ENDS}|{KOHYA_ENDS}|{LYCORIS_ENDS}|\.lora_[AB](\.default\.weight)?))",
        "comfy/lora.py: model_lora_keys_unet and model_lora_keys_clip, and comfy/weight_adapter/",
    ),
)


@dataclass(frozen=True)
class Use:
    """What one program makes of a file."""

    program: str
    used: int
    total: int
    note: str = ""

    @property
    def line(self) -> str:
        """Return it as one line to print."""
        verdict = "all" if self.used == self.total else "none" if not self.used else f"{self.used}"
        return f"{self.program}: {verdict} of {self.total} keys{f'; {self.note}' if self.note else ''}"


def uses(keys: Collection[str]) -> list[Use]:
    """Return how many of a LoRA's keys each program uses."""
    return [_use(program, keys) for program in PROGRAMS]


def _use(program: Program, keys: Collection[str]) -> Use:
    accepts = re.compile(program.accepts)
    taken = [key for key in keys if accepts.fullmatch(key)]
    taken = [] if all(key.endswith(".alpha") for key in taken) else taken  # of layers that it does not know
    cautioned = [key for key in keys if program.caution and re.fullmatch(program.caution, key)]
    strict = program.all_or_none and any(re.match(program.all_or_none, key) for key in keys)
    left = sorted(set(keys) - set(taken) - set(cautioned))
    if strict and left:
        return Use(program.name, 0, len(keys), f"refuses the file for {left[0]}")
    notes = [program.because] if cautioned else []
    notes += [f"ignores {left[0]}" + (" and others" if len(left) > 1 else "")] if left and taken else []
    return Use(program.name, len(taken), len(keys), "; ".join(notes))
