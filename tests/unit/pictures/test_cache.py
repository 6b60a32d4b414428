"""The cache: whole entries or none, whoever writes and whenever it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import UserError
from limner.files import default_cache
from limner.pictures.cache import Cache, key_of, list_cache, prune_cache

TENSORS = {"moments": torch.arange(12.0).reshape(2, 1, 2, 3)}


def test_what_is_stored_is_loaded_bit_for_bit(tmp_path):
    cache = Cache(tmp_path / "deep" / "cache")
    key = key_of("moments", a=1)
    assert cache.load(key) is None
    cache.store(key, TENSORS)
    loaded = cache.load(key)
    assert loaded is not None
    assert torch.equal(loaded["moments"], TENSORS["moments"])
    assert not cache.damaged


@pytest.mark.parametrize("place", [0, 20, 200, -5, -1])
def test_any_damage_is_noticed_and_the_entry_goes(tmp_path, place):
    cache = Cache(tmp_path)
    key = key_of("moments", a=1)
    cache.store(key, TENSORS)
    data = bytearray(cache.path(key).read_bytes())
    data[place % len(data)] ^= 0x10
    cache.path(key).write_bytes(data)
    assert cache.load(key) is None
    assert cache.damaged == [key]
    assert not cache.path(key).exists()


@pytest.mark.parametrize("length", [0, 3, 50, -1])
def test_a_cut_entry_is_noticed(tmp_path, length):
    cache = Cache(tmp_path)
    key = key_of("moments", a=1)
    cache.store(key, TENSORS)
    cache.path(key).write_bytes(cache.path(key).read_bytes()[:length])
    assert cache.load(key) is None
    assert cache.damaged == [key]


JSON = st.recursive(
    st.integers() | st.text() | st.booleans() | st.none() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
def test_keys_differ_exactly_when_their_parts_do(a, b):
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (key_of("x", part=a) == key_of("x", part=b)) == same
    assert key_of("x", part=a) != key_of("y", part=a)
    assert key_of("x", part=a) != key_of("x", part=a, more=1)


def test_the_key_is_pinned():
    """A changed key would throw away everybody's cache: raise FORMAT when that is meant."""
    assert key_of("moments", bytes="ab", transform=[1, 2], encoder="v") == (
        "moments/7186ae0b558e0a668efc8e608d04477b277e91588585dfc9909b96dbf6451ccd"
    )


WRITER = """
import sys, torch
from pathlib import Path
from limner.pictures.cache import Cache, key_of
cache = Cache(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    cache.store(key_of("moments", number=number % 50), {"moments": torch.full((2, 4, 64, 64), float(number % 50))})
    number += 1
"""


def test_kill_while_two_runs_write_leaves_only_whole_entries(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        cache = Cache(tmp_path)
        deadline = time.monotonic() + 60
        while sum(cache.path(key_of("moments", number=n)).exists() for n in range(50)) < 40:
            assert time.monotonic() < deadline
        for _ in range(5):  # read while they write
            for number in range(0, 50, 7):
                entry = cache.load(key_of("moments", number=number))
                assert entry is None or torch.equal(entry["moments"], torch.full((2, 4, 64, 64), float(number)))
    finally:
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            if writer.stdout:
                writer.stdout.close()
    for number in range(50):
        entry = cache.load(key_of("moments", number=number))
        assert entry is None or entry["moments"].mean() == number
    assert not cache.damaged


def test_prune_removes_what_was_not_used_for_longest(tmp_path):
    cache = Cache(tmp_path)
    keys = [key_of("moments", n=n) for n in range(4)]
    for age, key in enumerate(keys):
        cache.store(key, TENSORS)
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    cache.load(keys[0])  # used now
    abandoned = tmp_path / "moments" / ".x.part"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (1000, 1000))
    (held,) = list_cache(tmp_path)
    size = cache.path(keys[0]).stat().st_size
    assert (held.kind, held.files, held.bytes) == ("moments", 5, 4 * size + 4)
    removed, freed = prune_cache(tmp_path, keep_bytes=2 * size)
    assert (removed, freed) == (3, 2 * size + 4)
    assert [cache.path(key).exists() for key in keys] == [True, False, False, True]
    assert prune_cache(tmp_path / "nowhere", keep_bytes=0) == (0, 0)
    assert list_cache(tmp_path / "nowhere") == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written .* LIMNER_CACHE"):
        Cache(tmp_path / "file")


def test_default_place(monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
    monkeypatch.delenv("LIMNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/limner")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "limner"


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIMNER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is where nothing knows the user
    with pytest.raises(UserError, match=r"has no home folder\. Name a folder for the cache in LIMNER_CACHE"):
        default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "limner"
