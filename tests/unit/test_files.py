"""Files are whole or not there, what killed processes leave goes away, and what the disk refuses is one line."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from limner.errors import Unwritable, UserError
from limner.files import HOST, Need, replacing, require_room, require_writable, sweep
from limner.rundir import RunDir, write_atomically


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Have the system refuse what goes beyond this size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def dead() -> int:
    """Return the number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_that_the_disk_refuses_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    write_atomically(file, b"old")
    with no_file_larger_than(1000), pytest.raises(Unwritable, match=r"deep/file: cannot be written \(File too large\)"):
        write_atomically(file, b"x" * 5000)
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("first", "second"):
        with replacing(folder) as new:
            (new / "inner").mkdir(parents=True)
            (new / "inner" / "file").write_text(content)
    with suppress(KeyboardInterrupt), replacing(folder) as new:
        new.mkdir()
        raise KeyboardInterrupt
    assert (folder / "inner" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_goes_and_a_lost_folder_comes_back(tmp_path: Path, dead: int) -> None:
    """What is somebody else's stays: a living process's, another machine's of today, the user's own hidden files."""
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lost = tmp_path / f".model.{HOST}-{dead}-ab12.old"
    lost.mkdir()
    (lost / "weights").write_text("learned")
    for name in (f".model.{HOST}-{dead}-ab12.part", f".a.png.{HOST}-{dead}-0f.part"):
        (tmp_path / name).write_text("half")
    theirs = [f".b.png.{HOST}-{living.pid}-0f.part", ".b.png.elsewhere-1-0f.part", ".hidden.part", ".gitignore"]
    for name in theirs:
        (tmp_path / name).write_text("x")
    try:
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"model", *theirs}
        assert (tmp_path / "model" / "weights").read_text() == "learned"
    finally:
        living.communicate(b"\n")
    sweep(tmp_path)
    assert not (tmp_path / theirs[0]).exists()


def test_an_old_folder_does_not_replace_the_new_one(tmp_path: Path, dead: int) -> None:
    for name in ("model", f".model.{HOST}-{dead}-ab12.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    sweep(tmp_path)
    assert (tmp_path / "model" / "file").read_text() == "model"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="takes Linux's /proc as a folder that cannot be written")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(UserError, match=r"/proc/self/run: cannot be written \(.+\)\. Name another"):
        require_writable(Path("/proc/self/run"), "Name another.")


def test_room_is_counted_per_disk(tmp_path: Path) -> None:
    free = 2**60
    needs = [Need(tmp_path / "a", 2**20, "pictures"), Need(tmp_path / "b" / "c", free, "checkpoints")]
    require_room(needs[:1], "here", "")
    with pytest.raises(
        UserError, match=r"here: needs about 10\d+\.0 GiB for pictures and checkpoints, and /.* GiB free"
    ):
        require_room(needs, "here", "Free some.")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = RunDir(tmp_path)
    for step in (1, 2, 3):
        folder.append_log("step", step=step, loss=step / 7)
    folder.append_log("phase", name="größe")
    return folder


def test_a_line_cut_short_by_a_kill_harms_no_other(run: RunDir) -> None:
    whole = run.log.read_bytes()
    for length in range(len(whole) - 30, len(whole)):
        run.log.write_bytes(whole[:length])
        run.append_log("step", step=4)
        assert [row["step"] for row in run.read_log("step")] == [1, 2, 3, 4]


def test_what_was_logged_after_the_checkpoint_goes(run: RunDir) -> None:
    run.log.write_bytes(run.log.read_bytes() + b'{"event": "st')
    run.cut_log(2)
    assert [row["step"] for row in run.read_log("step")] == [1, 2]
    assert run.read_log("phase") == [{"event": "phase", "name": "größe"}]
    assert run.log.read_bytes().endswith(b"}\n")


def test_lines_that_the_disk_refuses_wait_and_come_in_order(run: RunDir) -> None:
    size = run.log.stat().st_size
    with no_file_larger_than(size + 10):
        run.append_log("step", step=4)
        run.append_log("step", step=5)
        assert run.log.stat().st_size == size
        with pytest.raises(Unwritable, match="2 lines cannot be written"):
            run.require_log()
    run.append_log("step", step=6)
    run.require_log()
    assert [row["step"] for row in run.read_log("step")] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_before_it_began_can_be_begun_again(tmp_path: Path) -> None:
    for name in (".lock", "log.jsonl", "provenance.json"):
        (tmp_path / name).write_text("")
    assert RunDir.create(tmp_path, name="x").path == tmp_path
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        RunDir.create(tmp_path, name="x")
