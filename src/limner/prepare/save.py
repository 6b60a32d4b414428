"""Write the training pictures as the model sees them into the run folder."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from limner.pictures.decode import without_warnings
from limner.pictures.spec import Pictures
from limner.prepare.check import Checked
from limner.prepare.look import look_again
from limner.rundir import write_atomically, write_json

MANIFEST = "manifest.json"


def save_pictures(checked: Checked, spec: Pictures, folder: Path, *, batch: int = 1, most: int = 256) -> None:
    """Write examples and masks after resize and crop as PNG, evenly chosen where there are more than `most`.

    The manifest is written last; it also has the exclusions, and the buckets with their batches of at most `batch`.
    Evaluation and the report then work without the user's folder.
    """
    rows = []
    examples = list({example.name: example for example in reversed(checked.examples)}.values())[::-1]
    number = min(most, len(examples))
    digits = len(str(number))
    for place in range(number):
        example = examples[place * len(examples) // number]
        file = f"{place:0{digits}d}.png"
        with without_warnings():
            seen = look_again(example.picture, spec, sha256=example.sha256, mask_sha256=example.mask_sha256,
                              shortest_px=example.fit.shortest_px)  # fmt: skip
        _write(example.fit.apply(seen.rgb), folder / file)
        mask = f"{place:0{digits}d}-mask.png" if seen.mask else None
        if seen.mask and mask:
            _write(example.fit.apply(seen.mask), folder / mask)
        rows.append(
            {
                "file": file,
                "mask": mask,
                "name": example.name,
                "path": str(example.path.resolve()),
                "caption": example.caption,
                "sha256": example.sha256,
                "size": list(example.size),
            }
        )
    sizes = checked.order(batch).batch_sizes()
    facts = {
        "given": checked.given,
        "batch": batch,
        "exclusions": [{"name": one.name, "reason": one.reason} for one in checked.exclusions],
        "buckets": [
            {**asdict(bucket), "batches": sorted(counts.items(), reverse=True)}
            for bucket, counts in zip(checked.buckets, sizes, strict=True)
        ],
    }
    write_json(folder / MANIFEST, {"pictures": rows, **facts})


def _write(image: Image.Image, path: Path) -> None:
    data = io.BytesIO()
    image.save(data, "PNG")
    write_atomically(path, data.getvalue())
