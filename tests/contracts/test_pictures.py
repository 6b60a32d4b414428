"""Every kind of place that pictures may come from: same names, same captions, same batches; read-only and complete."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.errors import UserError
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.encode import prepare
from tests.unit.prepare.conftest import SmallFamily

SPEC = Pictures(class_noun="dog", caption_dropout=0.25)
NUMBER = 5


def data(seed: int) -> bytes:
    draws = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(draws).resize((40, 40 + 8 * (seed % 2)), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def captioned_folder(place: Path, contents: list[bytes]) -> None:
    place.mkdir()
    for number, content in enumerate(contents):
        (place / f"{number}.png").write_bytes(content)
        (place / f"{number}.txt").write_text(f"sks dog {number}", encoding="utf-8")


def imagefolder(place: Path, contents: list[bytes]) -> None:
    (place / "images").mkdir(parents=True)
    rows = []
    for number, content in enumerate(contents):
        (place / "images" / f"{number}.png").write_bytes(content)
        rows.append(json.dumps({"file_name": f"images/{number}.png", "text": f"sks dog {number}"}))
    (place / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


def kohya_folders(place: Path, contents: list[bytes]) -> None:
    for number, content in enumerate(contents):
        folder = place / f"1_sks dog {number}"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(content)


def shard(place: Path, contents: list[bytes]) -> None:
    place.mkdir()
    with tarfile.open(place / "0.tar", "w") as tar:
        for number, content in enumerate(contents):
            for ending, part in (("png", content), ("txt", f"sks dog {number}".encode())):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))


def rows(place: Path, contents: list[bytes]) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": content, "path": None} for content in contents]
    table = datasets.Dataset.from_dict({"image": cells, "text": [f"sks dog {n}" for n in range(len(contents))]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(place))


PLACES: dict[str, Callable[[Path, list[bytes]], None]] = {
    make.__name__: make for make in (captioned_folder, imagefolder, kohya_folders, shard, rows)
}

every_place = pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
pytestmark = pytest.mark.filterwarnings("ignore")


def state_of(place: Path) -> dict[str, tuple[str, int]]:
    files = [p for p in place.rglob("*") if p.is_file()]
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def family() -> SmallFamily:
    return SmallFamily()


@pytest.fixture(scope="module")
def reference(family: SmallFamily, tmp_path_factory: pytest.TempPathFactory):
    """Return the batches of a captioned folder: (captions, moments, text) of each step."""
    place = tmp_path_factory.mktemp("reference") / "p"
    captioned_folder(place, [data(seed) for seed in range(NUMBER)])
    return batches(place, family, place.parent / "cache")


def batches(place: Path, family: SmallFamily, cache: Path) -> list[tuple[tuple[str, ...], torch.Tensor, torch.Tensor]]:
    checked = check_pictures(place, SPEC, resolution_px=32)
    prepared = prepare(checked, family, spec=SPEC, cache=cache, batch=2)
    drawn = [prepared.batch(step, seed=3) for step in range(6)]
    return [(batch.captions, batch.moments, batch.conditioning.hidden) for batch in drawn]


@every_place
def test_the_same_pictures_give_the_same_batches(make, reference, family, tmp_path):
    make(tmp_path / "p", [data(seed) for seed in range(NUMBER)])
    for ours, theirs in zip(batches(tmp_path / "p", family, tmp_path / "cache"), reference, strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])


@every_place
def test_names_are_unique_and_what_is_given_is_used_or_listed(make, tmp_path):
    make(tmp_path / "p", [data(0), b"text, not a picture", data(2), data(3)[:200]])
    before = state_of(tmp_path / "p")
    with pytest.raises(UserError) as caught:
        check_pictures(tmp_path / "p", SPEC, resolution_px=32)
    assert caught.value.message.startswith("2 of 4 pictures cannot be used:")
    checked = check_pictures(tmp_path / "p", SPEC.model_copy(update={"skip_bad": True}), resolution_px=32)
    names = [e.name for e in checked.examples] + [e.name for e in checked.exclusions]
    assert len(set(names)) == len(names) == checked.given == 4
    assert state_of(tmp_path / "p") == before


@every_place
def test_reading_again_gives_the_same_bytes(make, tmp_path):
    contents = [data(seed) for seed in range(3)]
    make(tmp_path / "p", contents)
    checked = check_pictures(tmp_path / "p", SPEC, resolution_px=32)
    assert [e.picture.read() for e in checked.examples] == contents
    assert [e.picture.read() for e in checked.examples] == contents
