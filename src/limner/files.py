"""Files and folders that are whole or not there at all, on the disk and not only on their way to it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from limner.errors import Unwritable, UserError

HALF_MADE = re.compile(r"\.(?P<name>.+)\.(?P<host>\w+)-(?P<process>\d+)-[0-9a-f]+\.(?P<kind>part|old)")
"""What a file or folder is called while it is made, and a folder that is about to be replaced: who is at it."""
HOST = re.sub(r"\W", "_", platform.node())[:32] or "_"
DAY_S = 24 * 3600
BASES = "bases"
"""The folder in the cache for bases that were made on this machine."""


@dataclass(frozen=True)
class Need:
    """So many bytes are going to be written into a folder."""

    folder: Path
    bytes: int
    what: str
    """What they are, in words."""


def default_cache() -> Path:
    """Return the cache folder: $LIMNER_CACHE, else `limner` in the platform's cache folder."""
    if chosen := os.environ.get("LIMNER_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"
    except RuntimeError:  # a user that the machine does not know, as in some containers
        raise UserError("This user has no home folder.", "Name a folder for the cache in LIMNER_CACHE.") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses within this block into one line that names the file.

    Raises:
        Unwritable: the disk is full, read-only or broken.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise Unwritable(
            f"{path}: cannot be written ({_reason(error)}).", "Make room, or name another place."
        ) from error


def require_writable(folder: Path, hint: str) -> None:
    """Make a folder, if it is not there, and a file in it for a moment: what would fail later fails now.

    Raises:
        UserError: names the folder and says why; `hint` is what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({_reason(error)}).", hint) from error


def require_room(needs: Sequence[Need], where: str, hint: str) -> None:
    """Refuse work that writes more than its disks have room for; `where` begins the message, `hint` ends it."""
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(_there(need.folder).stat().st_dev, []).append(need)
    for together in by_disk.values():
        place = _there(together[0].folder)
        needed, free = sum(need.bytes for need in together), shutil.disk_usage(place).free
        if needed > free:
            what = " and ".join(dict.fromkeys(need.what for need in together if need.bytes))
            disk = next(path for path in (place, *place.parents) if path.is_mount())
            raise UserError(
                f"{where}: needs about {_size(needed)} for {what}, and {disk} has {_size(free)} free.", hint
            )


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def passing(path: Path) -> Iterator[Path]:
    """Yield a place for what is only tried: nothing is there after the block, nor before it of a process that died."""
    remove(path)
    try:
        yield path
    finally:
        remove(path)


def _there(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.1f} MiB"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a new file or folder, which takes `path`'s place if the block ends well.

    It is on the disk before it has its name, so that a machine that stops leaves the old one or the new one.

    Raises:
        Unwritable: the disk did not take it; what was at `path` is still there.
    """
    mine = f"{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    new, old = (path.with_name(f".{path.name}.{mine}.{kind}") for kind in ("part", "old"))
    with writing(path):
        _make_folder(path.parent)
        try:
            yield new
            sync(new)
            if path.is_dir():  # only an empty folder can be replaced by another
                os.replace(path, old)
            os.replace(new, path)
            sync(path.parent, deep=False)
        finally:
            _put_back(old, path)
            remove(new)
            remove(old)


def sync(path: Path, *, deep: bool = True) -> None:
    """Have the disk hold a file's bytes, or a folder's entries and with `deep` all that is in them."""
    if path.is_dir():
        if deep:
            for inner in path.iterdir():
                sync(inner)
        if os.name == "nt":  # no folder can be opened there
            return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-made under `folder`; a folder that lost its name gets it back.

    What a living process is at stays, and so does what another machine began within the last day.
    """
    for at, folders, files in os.walk(folder):
        found = {name: match for name in (*folders, *files) if (match := HALF_MADE.fullmatch(name))}
        folders[:] = [name for name in folders if name not in found]
        for name, match in found.items():
            left = Path(at, name)
            if _is_abandoned(left, match["host"], int(match["process"])):
                with suppress(OSError):  # another process may sweep as well, and a disk may be read-only
                    if match["kind"] == "old":
                        _put_back(left, Path(at, match["name"]))
                    remove(left)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_back(old: Path, path: Path) -> None:
    """Give a folder that was to be replaced its name back, where nothing has taken its place."""
    if old.exists() and not path.exists():
        os.replace(old, path)


def _is_abandoned(left: Path, host: str, process: int) -> bool:
    """Tell whether nobody is at a half-made file any more."""
    import psutil

    try:
        touched = left.lstat().st_ctime
        if host != HOST:
            return time.time() - touched > DAY_S
        return psutil.Process(process).create_time() > touched + 2  # the number was given to another process since
    except psutil.NoSuchProcess:
        return True
    except (FileNotFoundError, psutil.Error):
        return False


def _make_folder(folder: Path) -> None:
    """Make a folder and what it lies in, and have the disk know of them."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent, deep=False)


def _reason(error: OSError | SafetensorError) -> str:
    """Return what the system says, which safetensors gives as a number in its text."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"os error (\d+)", str(error))
    return os.strerror(int(number[1])) if number else str(error)
