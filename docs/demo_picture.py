"""Make docs/images/demo.png from a finished demo: the pictures it learned from, the first image of each prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from limner.demonstration import DEMO_ARMS

SIDE, GAP, LABEL, COLUMNS = 128, 6, 22, 7


def first_images(folder: Path) -> list[Path]:
    """Return the first image of each subject prompt of one arm, in the order of the prompts."""
    images = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
    return [folder / i["file"] for i in images if i["set"] == "subject" and i["image_index"] == 0]


def main(demo: Path, out: Path) -> None:
    """Lay out a labelled row of pictures for what was learned from, the base, and each method."""
    runs = [demo / arm for arm in DEMO_ARMS]
    rows = [
        ("they learned from these", sorted((runs[0] / "pictures").glob("*.png"))),
        ("base", first_images(runs[0] / "images" / "base")),
        *((f"{run.name}, same prompts and seeds", first_images(run / "images" / "tuned")) for run in runs),
    ]
    columns = COLUMNS
    rows = [(label, files[:columns]) for label, files in rows]
    height = (SIDE + LABEL + GAP) * len(rows) + GAP
    page = Image.new("RGB", (columns * (SIDE + GAP) + GAP, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for r, (label, files) in enumerate(rows):
        top = GAP + r * (SIDE + LABEL + GAP)
        pen.text((GAP, top), label, fill="#333333", font=font)
        for c, file in enumerate(files):
            picture = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(picture, (GAP + c * (SIDE + GAP), top + LABEL))
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "images" / "demo.png")
