"""Pictures in tar shards as WebDataset has them: members that share a stem belong together."""

from __future__ import annotations

import json
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath

from limner.errors import UserError
from limner.pictures.picture import PICTURE_ENDINGS, Picture
from limner.pictures.text import to_text

_CAPTION_KEYS = ("text", "caption", "prompt")


def is_shard(path: Path) -> bool:
    """Tell by its name whether a file is a shard."""
    return path.suffix.lower() == ".tar" and not path.name.startswith(".")


def read_shard(shard: Path) -> list[Picture]:
    """List the pictures of a shard with their captions; the pictures themselves are read where they lie, when needed.

    Only the headers and the captions are read, so a shard of any size costs little memory.
    """
    pictures: dict[str, Picture] = {}
    captions: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # no compression: pictures are read at random
            while (member := tar.next()) is not None:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else it keeps every header
                name = PurePosixPath(member.name)
                if not member.isreg() or name.name.startswith("."):
                    continue
                stem, ending = f"{name.parent}/{name.name.partition('.')[0]}", name.suffix.lower()
                if ending in PICTURE_ENDINGS:
                    reader = partial(read_span, shard, member.offset_data, member.size)
                    pictures[stem] = _checked(
                        Picture(f"{shard.name}/{member.name}", shard, reader=reader), stem, pictures
                    )
                elif ending in (".txt", ".caption", ".json"):
                    data = read_span(shard, member.offset_data, member.size)
                    caption = _caption(data, ending, f"{shard}, {member.name}")
                    if caption is not None:
                        captions[stem] = caption
            _refuse_cut(shard, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard}: is not a whole, uncompressed tar file ({error}); {len(pictures)} pictures were listed before.",
            "Make it again; a .tar.gz has to be unpacked to .tar first.",
        ) from error
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or error}).", "Check the file.") from error
    if not pictures:
        raise UserError(f"No pictures in {shard}.", f"Known endings: {' '.join(sorted(PICTURE_ENDINGS))}.")
    return [
        Picture(p.name, p.path, captions.get(stem), shard.suffix if stem in captions else "", reader=p.reader)
        for stem, p in pictures.items()
    ]


def _refuse_cut(shard: Path, end: int) -> None:
    """Refuse a shard whose listing stopped at something else than its end, which the library takes for the end."""
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut or damaged after {end} bytes")


def read_span(path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset`; raises OSError when it has fewer."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"ends after {len(data)} of {size} bytes")
    return data


def _checked(picture: Picture, stem: str, known: dict[str, Picture]) -> Picture:
    if stem in known:
        raise UserError(
            f"{picture.path}: holds two pictures of one stem, {known[stem].name} and {picture.name}.",
            "Give each its own stem.",
        )
    return picture


def _caption(data: bytes, ending: str, where: str) -> str | None:
    """Return the caption in a member; None when a .json says something else."""
    text = to_text(data, where)
    if ending != ".json":
        return text
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg}).", "Make the shard again.") from error
    found = [str(facts[key]) for key in _CAPTION_KEYS if isinstance(facts, dict) and key in facts]
    return found[0] if found else None
