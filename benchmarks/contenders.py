"""Who is measured side by side, and how each is called: Limner, the bare floor, and the peers' own checkouts.

The peers run as they are: no line of theirs is changed, and none is here. What each is asked for is the same, as far as
it can be: LoRA of the UNet's attention, batch 1, AdamW, constant rate, no gradient checkpointing, no previews.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CAPTION = "a photo of sks thing"
RATE = "1e-4"


@dataclass(frozen=True)
class Task:
    """What everyone is asked to do."""

    base: Path
    """A diffusers folder."""
    pictures: Path
    """A folder of pictures, all of the resolution's size."""
    number: int
    """How many they are."""
    place: Path
    """An empty folder for what is written."""
    resolution_px: int
    steps: int
    rank: int
    precision: str

    @property
    def is_xl(self) -> bool:
        """Whether the base is of SDXL's architecture, not of SD 1.5's."""
        return (self.base / "text_encoder_2").is_dir()

    @property
    def suffix(self) -> str:
        """What diffusers' scripts for the base have at the end of their names."""
        return "_sdxl" if self.is_xl else ""


@dataclass(frozen=True)
class Call:
    """A command, and how its steps are seen."""

    command: list[str]
    steps: re.Pattern[str]
    """Found in what it prints, or in its log; the first group is the number of steps that are done."""
    cwd: Path | None = None
    log: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def bar(name: str) -> re.Pattern[str]:
    """Return what finds the steps in a progress bar of tqdm with that name."""
    return re.compile(rf"(?<![\w ]){name}:\s+\d+%\|[^|]*\|\s*(\d+)/\d+ \[")


def limner(task: Task) -> Call:
    """Return the call of Limner itself."""
    run = task.place / "run"
    command = [
        sys.executable, "-m", "limner", "train", str(task.pictures), "--recipe", "lora", f"base={task.base}",
        f"precision={task.precision}", f"resolution={task.resolution_px}", f"steps={task.steps}", "batch=1",
        f"adapter.rank={task.rank}", f"learning_rate={RATE}", "device=cpu", "pictures.class_noun=thing",
        "checkpoint.every_steps=0", "--run", str(run),
    ]  # fmt: skip
    seen = re.compile(r'"event": "step", "step": (\d+)')
    return Call(command, seen, log=run / "log.jsonl", environment={"LIMNER_CACHE": str(task.place / "cache")})


def floor(task: Task) -> Call:
    """Return the call of the bare floor."""
    command = [
        sys.executable, "-m", "benchmarks.bare_floor", str(task.base), "--resolution", str(task.resolution_px),
        "--precision", task.precision, "--steps", str(task.steps),
    ]  # fmt: skip
    return Call(command, re.compile(r"floor: (\d+)/"))


def diffusers_dreambooth(task: Task, checkout: Path, python: str) -> Call:
    """Return the call of diffusers' script for a subject."""
    command = [
        python, str(checkout / f"examples/dreambooth/train_dreambooth_lora{task.suffix}.py"),
        "--instance_data_dir", str(task.pictures), "--instance_prompt", CAPTION,
        *_diffusers(task), "--lr_warmup_steps", "0",
    ]  # fmt: skip
    return Call(command, bar("Steps"))


def diffusers_text_to_image(task: Task, checkout: Path, python: str) -> Call:
    """Return the call of diffusers' script for captioned pictures."""
    data = task.place / "data"
    shutil.copytree(task.pictures, data)
    rows = [{"file_name": file.name, "text": CAPTION} for file in sorted(data.iterdir())]
    (data / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = [
        python, str(checkout / f"examples/text_to_image/train_text_to_image_lora{task.suffix}.py"),
        "--train_data_dir", str(data), *_diffusers(task),
    ]  # fmt: skip
    return Call(command, bar("Steps"))


def _diffusers(task: Task) -> list[str]:
    mixed = {"bfloat16": "bf16", "float32": "no"}[task.precision]
    return [
        "--pretrained_model_name_or_path", str(task.base), "--resolution", str(task.resolution_px),
        "--train_batch_size", "1", "--rank", str(task.rank), "--learning_rate", RATE, "--lr_scheduler", "constant",
        "--max_train_steps", str(task.steps), "--checkpointing_steps", "100000", "--seed", "0",
        "--output_dir", str(task.place / "out"), "--report_to", "tensorboard", "--mixed_precision", mixed,
    ]  # fmt: skip


def sd_scripts(task: Task, checkout: Path, python: str) -> Call:
    """Return the call of kohya's trainer, with latents (and SDXL's captions) cached, which it does best."""
    data, tokenizers = task.place / "data", task.place / "tokenizers"
    shutil.copytree(task.pictures, data / "1_sks thing")
    shutil.copytree(task.base / "tokenizer", tokenizers / "openai_clip-vit-large-patch14")
    if task.is_xl:
        shutil.copytree(task.base / "tokenizer_2", tokenizers / "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
    kept = {"bfloat16": "bf16", "float32": "float"}[task.precision]
    mixed = {"bfloat16": "bf16", "float32": "no"}[task.precision]
    side = str(task.resolution_px)
    script = "sdxl_train_network.py" if task.is_xl else "train_network.py"
    command = [
        python, str(checkout / script), "--pretrained_model_name_or_path", str(task.base),
        "--train_data_dir", str(data), "--resolution", f"{side},{side}", "--train_batch_size", "1",
        "--network_module", "networks.lora", "--network_dim", str(task.rank), "--network_alpha", str(task.rank),
        "--network_train_unet_only", "--learning_rate", RATE, "--lr_scheduler", "constant",
        "--optimizer_type", "AdamW", "--max_train_steps", str(task.steps), "--seed", "0",
        "--output_dir", str(task.place / "out"), "--output_name", "lora", "--save_model_as", "safetensors",
        "--max_data_loader_n_workers", "0", "--no_half_vae", "--cache_latents", "--sdpa",
        "--mixed_precision", mixed, "--save_precision", kept, "--tokenizer_cache_dir", str(tokenizers),
        *["--cache_text_encoder_outputs"] * task.is_xl,
    ]  # fmt: skip
    return Call(command, bar("steps"), cwd=checkout)


def onetrainer(task: Task, checkout: Path, python: str) -> Call:
    """Return the call of OneTrainer without its window, with latents cached: one epoch of all pictures."""
    dtype = {"bfloat16": "BFLOAT_16", "float32": "FLOAT_32"}[task.precision]
    out = task.place / "out"
    frozen = {"train": False, "weight_dtype": dtype}
    settings = {
        "__version": 11, "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_XL_10_BASE" if task.is_xl else "STABLE_DIFFUSION_15",
        "base_model_name": str(task.base), "workspace_dir": str(out / "workspace"), "cache_dir": str(out / "cache"),
        "tensorboard": False, "output_model_format": "KOHYA_LORA", "output_dtype": dtype,
        "output_model_destination": str(out / "lora.safetensors"), "latent_caching": True,
        "concepts": [{"__version": 2, "name": "thing", "path": str(task.pictures), "enabled": True,
                      "text": {"__version": 0, "prompt_source": "concept", "prompt_path": _prompt(task)}}],
        "learning_rate": float(RATE), "learning_rate_scheduler": "CONSTANT", "learning_rate_warmup_steps": 0,
        "epochs": -(-task.steps // task.number), "batch_size": 1, "train_device": "cpu", "temp_device": "cpu",
        "train_dtype": dtype, "weight_dtype": dtype, "resolution": str(task.resolution_px),
        "unet": {"train": True, "weight_dtype": dtype, "gradient_checkpointing": False},
        "text_encoder": frozen, "text_encoder_2": frozen, "vae": frozen,
        "layer_filter": "attn1,attn2", "layer_filter_preset": "custom",
        "peft_type": "LORA", "lora_rank": task.rank, "lora_alpha": float(task.rank), "lora_weight_dtype": "FLOAT_32",
        "optimizer": {"__version": 0, "optimizer": "ADAMW"},
        "sample_after_unit": "NEVER", "backup_after_unit": "NEVER", "save_every_unit": "NEVER",
        "backup_before_save": False, "samples": [],
    }  # fmt: skip
    config = task.place / "config.json"
    config.write_text(json.dumps(settings))
    command = [python, "scripts/train.py", "--config-path", str(config)]
    return Call(command, bar("step"), cwd=checkout)  # it looks for its own modules where it is called


def _prompt(task: Task) -> str:
    """Write the prompt where OneTrainer reads it."""
    file = task.place / "prompt.txt"
    file.write_text(CAPTION)
    return str(file)


Peer = Callable[[Task, Path, str], Call]
PEERS: dict[str, tuple[str, Peer]] = {
    "diffusers train_dreambooth_lora": ("diffusers", diffusers_dreambooth),
    "diffusers train_text_to_image_lora": ("diffusers", diffusers_text_to_image),
    "sd-scripts train_network": ("sd-scripts", sd_scripts),
    "OneTrainer": ("onetrainer", onetrainer),
}
"""By name: whose checkout it is in, and how it is called; for SDXL, the script of that name that is for SDXL."""
