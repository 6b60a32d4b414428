"""Stage `export`: write the model folder in diffusers layout, float16, and check that it loads."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel

from pretraining import decoder, unet, whitening
from pretraining.text import MEAN, STD
from pretraining.world import COLOURS, HELD_OUT_STYLES, STYLES

ASSETS = Path(__file__).parent.parent / "src" / "limner" / "assets" / "tiny"
_PARTS = {
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


def _write_text_encoder(model: CLIPModel, folder: Path) -> None:
    """Write the text tower with the key names of the published SD 1.5 files."""
    tower = CLIPTextModel(model.config.text_config)
    wanted = set(tower.state_dict())
    weights = {
        name.removeprefix("text_model."): value
        for name, value in model.state_dict().items()
        if name.startswith("text_model.")
    }
    prefixed = {f"text_model.{name}": value for name, value in weights.items()}
    tower.load_state_dict(prefixed if any("text_model." in k for k in wanted) else weights,
                          strict=False)  # fmt: skip
    tower.half().save_pretrained(folder)
    saved = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(saved, folder / "model.safetensors", {"format": "pt"})


def _readme(examples: int, trained_s: float, *, adopted: bool) -> str:
    world = ", ".join(f"{spec.noun} ({spec.style})" for spec in STYLES.values())
    held = ", ".join(f"{spec.noun} ({spec.style})" for spec in HELD_OUT_STYLES.values())
    began = ", from the version before it" if adopted else ""
    return f"""# tiny: the embedded base of Limner

A small latent diffusion model in the layout of Stable Diffusion 1.5 (same classes, same beta
schedule, `prediction_type` v_prediction), trained from random weights on pictures that were drawn
for it with DiceBear. It is for learning, testing and trying Limner without a download. It is no
general picture model: its world is {len(STYLES)} kinds of figures in {len(COLOURS)} colours.

- pictures: 64 x 64 pixels, latents 4 x 16 x 16; 20 DDIM steps, guidance 4 to 7
- class nouns (drawing style): {world}
- held out whole, never seen in training: {held}
- colours: {", ".join(COLOURS)}
- a prompt: `a photo of a red critter with horns and one eye on a blue background`; a plant's colour is its pot's
- `image_text_encoder/`: the CLIP-like encoder (64 px) whose text tower is `text_encoder/`
- 40 MB in float16: UNet 9.9 M parameters, VAE 2.7 M, text encoder 2.6 M, image tower 2.4 M
- UNet trained on {examples:,} examples in {trained_s / 60:.0f} minutes{began}; written {date.today()}
- how well it follows its captions, and where it fails: `pretraining/RESULTS.md`
- licence: Apache-2.0 for the weights; the drawings are CC0 1.0 (see NOTICE)

How it was made, measured and how to go on: `pretraining/` in Limner's repository.
"""


def run(work: Path, minutes: float | None = None, *, target: Path | None = None) -> None:
    """Write the folder from the working files; `minutes` has no meaning here."""
    target = target or ASSETS
    target.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (target / "tokenizer").mkdir(exist_ok=True)
        shutil.copy(work / "tokenizer" / name, target / "tokenizer" / name)
    model = CLIPModel.from_pretrained(work / "image_text_encoder")
    _write_text_encoder(model, target / "text_encoder")
    model.half().save_pretrained(target / "image_text_encoder")
    CLIPImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}, do_resize=True,
        do_center_crop=False, image_mean=MEAN, image_std=STD,
    ).save_pretrained(target / "image_text_encoder")  # fmt: skip
    decoder.average_of(work).half().save_pretrained(target / "vae")
    saved = torch.load(work / "unet.pt", map_location="cpu", weights_only=True)
    network = unet.build()
    network.load_state_dict(whitening.load(work / "captions.pt").to_plain(saved["state"]["ema"]))
    network.half().save_pretrained(target / "unet")
    unet.scheduler().save_pretrained(target / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
             "requires_safety_checker": False, **_PARTS}  # fmt: skip
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (target / "README.md").write_text(
        _readme(saved["examples"], saved["trained_s"], adopted=(work / "unet_start").exists())
    )
    for file in target.rglob("config.json"):  # where this machine kept the parts is nobody's business
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        file.write_text(json.dumps(config, indent=2) + "\n")
    StableDiffusionPipeline.from_pretrained(target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
