"""Write captions with an image-to-text model: BLIP, Florence-2, or another that transformers knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from limner.errors import UserError
from limner.pictures.decode import BadPicture, decode_bytes, read_through
from limner.pictures.folder import find_pictures
from limner.pictures.picture import Picture
from limner.pictures.spec import Pictures
from limner.prepare.ahead import work_ahead
from limner.rundir import write_atomically

Caption = Callable[[Image.Image], str]
_TASKS = {"florence2": "<DETAILED_CAPTION>"}
"""What to ask models that do several things; the others caption when asked nothing."""


def caption_pictures(
    paths: Path | Sequence[Path],
    captioner: Caption,
    out: Path,
    *,
    spec: Pictures,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Caption every picture into `out`, a .jsonl of file_name and text for `pictures.captions_file`; return it.

    What is done is kept beside `out` while it grows, so a stopped run goes on where it was. The pictures' folder
    is only read, and a picture that cannot be decoded is a UserError that names it.
    """
    pictures = find_pictures(paths).pictures
    part = out.with_name(f"{out.name}.part")
    done = _read_done(part)
    todo = [picture for picture in pictures if picture.name not in done]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a", encoding="utf-8") as file:
            ahead = work_ahead(lambda picture: _decode(picture, spec), todo)
            for number, (picture, image) in enumerate(zip(todo, ahead, strict=True), len(done) + 1):
                done[picture.name] = " ".join(captioner(image).split())
                file.write(json.dumps({"file_name": picture.name, "text": done[picture.name]}) + "\n")
                file.flush()
                if progress:
                    progress(number, len(pictures))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}).", "Name another file.") from error
    write_atomically(out, part.read_bytes())
    part.unlink()
    return out


def load_captioner(name: str, *, device: torch.device | str = "cpu") -> Caption:
    """Load an image-to-text model by its hub name or folder; return a function from a picture to its caption."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(name)
        model: Any = AutoModelForImageTextToText.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"captioner {name!r}: cannot be loaded ({first}).",
            "Name a folder, or a model such as Salesforce/blip-image-captioning-base.",
        ) from error
    model.to(device).eval()
    task = _TASKS.get(model.config.model_type)

    @torch.no_grad()
    def caption(image: Image.Image) -> str:
        asked = {} if task is None else {"text": task}
        inputs = processor(images=image, return_tensors="pt", **asked).to(device)
        tokens = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        (text,) = processor.batch_decode(tokens, skip_special_tokens=True)
        return text.strip()

    return caption


def _decode(picture: Picture, spec: Pictures) -> Image.Image:
    try:
        data = read_through(picture.read)
        return decode_bytes(data, background=spec.background, max_megapixels=spec.max_megapixels).rgb
    except BadPicture as bad:
        raise UserError(f"{picture.path}: {bad}.", "Find all such files with: limner check") from bad


def _read_done(part: Path) -> dict[str, str]:
    """Return the captions of a run that was stopped; a last line cut short is left out."""
    done: dict[str, str] = {}
    if part.is_file():
        lines = part.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        write_atomically(part, "".join(whole).encode())
        for line in whole:
            row = json.loads(line)
            done[row["file_name"]] = row["text"]
    return done
