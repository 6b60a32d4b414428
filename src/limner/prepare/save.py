"""Write the training pictures as the model sees them into the run folder."""

from __future__ import annotations

from pathlib import Path

from limner.pictures.decode import decode
from limner.pictures.spec import Pictures
from limner.prepare.check import Checked
from limner.rundir import write_json

MANIFEST = "manifest.json"


def save_pictures(checked: Checked, spec: Pictures, folder: Path) -> None:
    """Write every example after resize and crop as PNG; the manifest is written last.

    Evaluation and the report then work without the user's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    digits = len(str(len(checked.examples)))
    for number, example in enumerate(checked.examples):
        file = f"{number:0{digits}d}.png"
        image = decode(example.path, background=spec.alpha, max_megapixels=spec.max_megapixels)
        example.fit.apply(image).save(folder / file)
        rows.append(
            {
                "file": file,
                "name": example.name,
                "path": str(example.path.resolve()),
                "caption": example.caption,
                "sha256": example.sha256,
                "size": list(example.size),
            }
        )
    write_json(folder / MANIFEST, {"pictures": rows})
