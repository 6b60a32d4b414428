"""Shards and data sets of rows are read where they lie, with their captions."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.errors import UserError
from limner.pictures.folder import find_pictures
from limner.pictures.rows import hub_name
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures


def png(seed: int) -> bytes:
    draws = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(draws).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_of_a_shard_with_their_captions(tmp_path):
    write_shard(
        tmp_path / "000.tar",
        {
            "a.png": png(0),
            "a.txt": b"\xef\xbb\xbfsks dog",
            "more/b.webp": png(1),
            "more/b.json": json.dumps({"caption": "sks dog b", "width": 32}).encode(),
            "a.cls": b"7",
            ".hidden.png": b"x",
        },
    )
    write_shard(tmp_path / "001.tar", {"a.png": png(2), "a.caption": "größer".encode()})
    checked = check_pictures(tmp_path, Pictures(), resolution_px=32)
    assert {e.name: e.caption for e in checked.examples} == {
        "000.tar/a.png": "sks dog",
        "000.tar/more/b.webp": "sks dog b",
        "001.tar/a.png": "größer",
    }
    assert [e.picture.read() for e in checked.examples] == [png(0), png(1), png(2)]
    one = check_pictures(tmp_path / "001.tar", Pictures(), resolution_px=32)
    assert [e.name for e in one.examples] == ["001.tar/a.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_shard(p, {"a.png": png(0)}, "w:gz"), "a .tar.gz has to be unpacked to .tar first"),
        (lambda p: p.write_bytes(b"x" * 3000), "is not a whole, uncompressed tar file"),
        (lambda p: write_shard(p, {"a.txt": b"x"}), "No pictures in"),
        (lambda p: write_shard(p, {"a.png": png(0), "a.webp": png(1)}), "holds two pictures of one stem"),
        (lambda p: write_shard(p, {"a.png": png(0), "a.json": b"{"}), "a.json: is not JSON"),
        (lambda p: write_shard(p, {"a.png": png(0), "a.txt": b"\x83"}), r"a.txt: is not UTF-8 \(byte 0x83 at 0\)"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, make, message):
    make(tmp_path / "s.tar")
    with pytest.raises(UserError, match=message):
        find_pictures(tmp_path / "s.tar")


def test_a_shard_cut_short_is_an_error_and_a_bad_member_is_named(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"a.png": png(0), "b.png": png(1), "c.png": png(2)})
    whole = shard.read_bytes()
    shard.write_bytes(whole[:8480])
    with pytest.raises(UserError, match="it is cut or damaged after 8192 bytes.*; 2 pictures were listed before"):
        check_pictures(shard, Pictures(), resolution_px=32)
    shard.write_bytes(whole[:9000])
    with pytest.raises(UserError, match="1 of 3 pictures cannot be used|not a whole"):
        check_pictures(shard, Pictures(), resolution_px=32)
    write_shard(shard, {"a.png": png(0), "b.png": b"text"})
    with pytest.raises(UserError, match=r"1 of 2 pictures cannot be used:\n  s.tar/b.png  is not a picture but text"):
        check_pictures(shard, Pictures(), resolution_px=32)


def test_rows_without_the_library_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hf:someone/dogs: needs the package datasets. .*limner\[data\]"):
        find_pictures(Path("hf:someone/dogs"))


def test_names_on_the_hub_survive_being_made_absolute():
    assert hub_name(Path("hf:someone/dogs")) == "someone/dogs"
    assert hub_name(Path("hf:someone/dogs").absolute()) == "someone/dogs"
    assert hub_name(Path("/pictures/dogs")) == hub_name(Path("half:way")) == ""


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return library


def table_of(library, folder: Path, text: str = "text"):
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(3)], text: ["a", "sks b", ""]}
    return library.Dataset.from_dict(columns).cast_column("image", library.Image())


@pytest.mark.filterwarnings("ignore")
def test_rows_of_parquet_and_of_a_saved_set(datasets, tmp_path):
    table = table_of(datasets, tmp_path)
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "0.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for place in (tmp_path / "parquet", tmp_path / "parquet" / "0.parquet", tmp_path / "saved"):
        checked = check_pictures(place, Pictures(), resolution_px=32)
        assert [e.caption for e in checked.examples] == ["a", "sks b", ""]
        assert [e.picture.read() for e in checked.examples] == [png(0), png(1), png(2)]
        assert [e.name for e in checked.examples] == ["row 0", "row 1", "row 2"]


@pytest.mark.filterwarnings("ignore")
def test_rows_that_cannot_be_used(datasets, tmp_path):
    table = table_of(datasets, tmp_path).add_column("prompt", ["x", "y", "z"])
    table.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match="columns text and prompt may both be the caption"):
        find_pictures(tmp_path / "two")
    table.remove_columns("image").save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"has 0 columns of pictures \(columns: text, prompt\)"):
        find_pictures(tmp_path / "none")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as a data set"):
        find_pictures(tmp_path / "bad.parquet")


@pytest.mark.filterwarnings("ignore")
def test_shards_that_webdataset_wrote(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as sink:
        for number in range(3):
            sink.write({"__key__": f"{number:04d}", "png": png(number), "txt": f"sks {number}"})
    checked = check_pictures(tmp_path / "w.tar", Pictures(), resolution_px=32)
    assert [(e.caption, e.picture.read()) for e in checked.examples] == [(f"sks {i}", png(i)) for i in range(3)]
