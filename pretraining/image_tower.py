"""Stage `image_tower`: train the encoder that looks at pictures on; text states, and so the UNet, stay valid."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPModel, CLIPTokenizer

from pretraining import text
from pretraining.progress import Clock, device, set_threads

PEAK_RATE = 4e-4  # it is trained already


def run(work: Path, minutes: float = 15) -> None:
    """Train for `minutes` in all what comes after the text states: the image tower, both projections, the scale."""
    set_threads()
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    model = CLIPModel.from_pretrained(work / "image_text_encoder").to(device()).train()
    model.set_attn_implementation("eager")
    model.text_model.requires_grad_(False)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    text.train(model, learning, tokenizer, work, Clock(work / "image_tower.pt", minutes), PEAK_RATE)
