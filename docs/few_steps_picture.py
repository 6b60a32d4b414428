"""Make docs/images/few_steps.png from runs that `benchmarks.few_steps` has drawn with: a row for each arm."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LABELS = {
    "base-many-steps": "25 steps, guidance",
    "base-few-steps": "4 steps, guidance",
    "base-few-steps-adapters-cost": "4 steps, no guidance",
    "adapter-few-steps": "4 steps, few-step adapter",
}
SIDE, LEFT, COLUMNS = 96, 200, 7


def main(runs: list[Path], out: Path) -> None:
    """Lay out the first images of the first prompts of each run, uncurated, in labelled rows."""
    page = Image.new("RGB", (LEFT + len(runs) * COLUMNS * SIDE, len(LABELS) * SIDE), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, (arm, label) in enumerate(LABELS.items()):
        pen.text((8, row * SIDE + SIDE // 2 - 8), label, fill="#333333", font=font)
        files = [file for run in runs for file in sorted((run / "few-steps" / arm).glob("*-00.png"))[:COLUMNS]]
        for column, file in enumerate(files):
            picture = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(picture, (LEFT + column * SIDE, row * SIDE))
    page.save(out, optimize=True)


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]], Path(__file__).parent / "images" / "few_steps.png")
