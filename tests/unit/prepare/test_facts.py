"""Facts of pictures are kept between checks: what was decoded is not decoded again, and damage costs only time."""

import subprocess
import sys

import pytest

from limner.pictures.spec import Pictures
from limner.prepare import look
from limner.prepare.check import check_pictures
from limner.prepare.facts import Look, Looks
from tests.unit.prepare.conftest import picture

SPEC = Pictures()


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of how many bytes each decoded file had."""
    sizes = []
    original = look.decode_bytes

    def counting(data, **settings):
        sizes.append(len(data))
        return original(data, **settings)

    monkeypatch.setattr(look, "decode_bytes", counting)
    return sizes


def test_only_new_and_changed_files_are_decoded(make_folder, tmp_path, decoded):
    folder, cache = make_folder(4), tmp_path / "cache"
    first = check_pictures(folder, SPEC, resolution_px=32, cache=cache)
    assert len(decoded) == 4
    assert check_pictures(folder, SPEC, resolution_px=32, cache=cache) == first
    assert len(decoded) == 4
    picture(40).save(folder / "001.png")
    picture(41).save(folder / "new.png")
    check_pictures(folder, SPEC, resolution_px=32, cache=cache)
    assert len(decoded) == 6
    check_pictures(folder, Pictures(alpha="black"), resolution_px=32, cache=cache)
    assert len(decoded) == 11


def test_a_bad_file_is_looked_at_every_time(make_folder, tmp_path, decoded):
    folder = make_folder(1)
    (folder / "bad.png").write_bytes(b"text")
    for _ in range(2):
        check_pictures(folder, Pictures(skip_bad=True), resolution_px=32, cache=tmp_path / "cache")
    assert len(decoded) == 3


def test_a_damaged_file_of_facts_is_made_again(make_folder, tmp_path, decoded):
    folder, cache = make_folder(2), tmp_path / "cache"
    check_pictures(folder, SPEC, resolution_px=32, cache=cache)
    (cache / "looks.sqlite").write_bytes(b"this is no database, " * 400)
    check_pictures(folder, SPEC, resolution_px=32, cache=cache)
    check_pictures(folder, SPEC, resolution_px=32, cache=cache)
    assert len(decoded) == 4


def test_looks_come_back_as_they_were(tmp_path):
    one = Look("ab", (3, 4), ("a note", "größer"), True, 2**64 - 1, 0.25, (0.5, 0.125), "cd")
    kept = Looks(tmp_path)
    kept.put("k", one)
    kept.close()
    again = Looks(tmp_path)
    assert again.get("k") == one
    assert again.get("other") is None
    again.close()


def test_captions_are_read_in_any_locale(tmp_path):
    (tmp_path / "a.txt").write_bytes("sks größer 犬".encode())
    program = (
        "from pathlib import Path; from limner.pictures.captions import read_captions; "
        "from limner.pictures.picture import Picture; from limner.pictures.spec import Pictures; "
        f"p = Picture('a.png', Path({str(tmp_path / 'a.png')!r})); "
        "print(ascii(read_captions([p], Pictures())[0]['a.png']))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=plain, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == ascii("sks größer 犬")
