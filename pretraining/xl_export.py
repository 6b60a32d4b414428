"""Writes the XL pair where Limner finds it: diffusers folders in the user's cache, float16."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from limner.families.source import ASSETS, made_here
from limner.files import replacing
from pretraining import xl_text
from pretraining.progress import Clock
from pretraining.views import SIDE_PX

_ABOUT = {
    "tiny-xl": """# tiny-xl: the embedded base in SDXL's layout

Two text encoders, pooled text, original size, crop and target size; {side} x {side} pixels.
A third of its training pictures were smaller than {side} pixels and scaled up, a third were cut out of larger ones, and
it was told so. Limner asks for {side} pixels and no crop, as the last third was.
""",
    "tiny-xl-refiner": """# tiny-xl-refiner: the refiner of tiny-xl

The second text encoder alone, and a score instead of the target size: 2 for a picture that is blurred and noisy, 6 to
10 for a clean one. It knows the last quarter of the noise (timesteps below 250 of 1000): hand over at 0.8.
""",
}
_MADE = """
Made from the embedded base by `python -m pretraining tiny-xl`: {examples:,} examples in {minutes:.0f} minutes; written
{today}. v-prediction. The same drawings (DiceBear, CC0 1.0) and the same licence (Apache-2.0) as the embedded base.
"""


def write(name: str, work: Path, base: Path, network: UNet2DConditionModel, clock: Clock) -> None:
    """Write the folder that base=`name` finds, with the moving average of the weights."""
    is_refiner = name == "tiny-xl-refiner"
    average = torch.load(clock.path, map_location="cpu", weights_only=True)["state"]["ema"]
    network.cpu().load_state_dict(average)
    with replacing(made_here(name)) as folder:
        parts = ["vae", "scheduler", *([] if is_refiner else ["tokenizer", "text_encoder", "image_text_encoder"])]
        for part in parts:
            shutil.copytree(base / part, folder / part)
        shutil.copytree(base / "tokenizer", folder / "tokenizer_2")
        xl_text.load_second(work, base).half().save_pretrained(folder / "text_encoder_2")
        network.half().save_pretrained(folder / "unet")
        index = json.loads((ASSETS / name.replace("tiny-xl", "sdxl") / "model_index.json").read_text())
        kind = json.loads((base / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}, indent=2))
        made = _MADE.format(examples=clock.examples, minutes=clock.trained_s / 60, today=date.today())
        (folder / "README.md").write_text(_ABOUT[name].format(side=SIDE_PX) + made)
    print(made_here(name), flush=True)
