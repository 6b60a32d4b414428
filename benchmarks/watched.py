"""A process watched from outside (Linux): when it ends its steps, what the processor had done by then, its memory.

Nothing is put into it: its steps are read from what it prints, or from a file that it writes.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.02
"""How often memory is looked at; a peak of anonymous memory that is shorter may be missed."""
KIB_GB = 1024e-9
KEPT = 4000
"""So many characters of the last output are kept."""


@dataclass(frozen=True)
class Usage:
    """What a process and its children hold, and have computed so far."""

    total_gb: float
    anonymous_gb: float
    cpu_s: float


@dataclass(frozen=True)
class Moment:
    """Seconds since a process was started: on the clock, and of the processor, its children's among them."""

    wall_s: float
    cpu_s: float


@dataclass
class Watched:
    """What was seen of a process."""

    code: int = 0
    """Its exit code."""
    said: str = ""
    """The end of what it printed."""
    steps: dict[int, Moment] = field(default_factory=dict[int, Moment])
    """The end of each step."""
    end: Moment = Moment(0.0, 0.0)
    peak_gb: float = 0.0
    """The most that it held at once from start to end, pages of files among it."""
    peak_anonymous_gb: float = 0.0
    """Of its memory that is no page of a file."""


def usage(pid: int) -> Usage | None:
    """Return what a process and its children hold now, the process itself at its highest; None when it is gone."""
    try:
        own = _usage(pid, high=True)
    except OSError:
        return None
    every = [own]
    for child in _descendants(pid):
        try:
            every.append(_usage(child, high=False))
        except OSError:
            continue
    return Usage(sum(u.total_gb for u in every), sum(u.anonymous_gb for u in every), sum(u.cpu_s for u in every))


def _usage(pid: int, *, high: bool) -> Usage:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = sum(int(tick) for tick in ticks[11:15]) / os.sysconf("SC_CLK_TCK")  # its own, and of children that ended
    total, anonymous = (
        int(status.get(key, "0").split()[0]) * KIB_GB for key in ("VmHWM" if high else "VmRSS", "RssAnon")
    )
    return Usage(total, anonymous, used)


def _descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in file.read_text().split()]
        except OSError:
            continue
    return found + [further for child in found for further in _descendants(child)]


class Steps:
    """The numbers of steps in what a process writes, whatever the pieces in which it comes."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        """Find steps by `pattern`, whose first group is the number of steps that are done."""
        self._pattern, self._rest = pattern, ""

    def of(self, text: str) -> list[int]:
        """Return the numbers in the next piece, in order."""
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        # a bar is complete without the end of its line, which comes with the next one
        return [int(m.group(1)) for line in (*lines, self._rest) for m in self._pattern.finditer(line)]


def watch(
    command: Sequence[str],
    steps: re.Pattern[str],
    *,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    log: Path | None = None,
) -> Watched:
    """Run a command to its end, and return what was seen of it.

    `steps` is looked for in what it prints, or in `log`; its first group is the number of steps that are done.
    """
    seen, found, begun = Watched(), Steps(steps), time.perf_counter()
    process = subprocess.Popen(command, env=dict(environment), cwd=cwd, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert process.stdout
    try:
        read = 0
        for printed in _printed(process.stdout.fileno()):
            seen.said = (seen.said + printed)[-KEPT:]
            if log is not None:
                printed, read = _appended(log, read)
            now = usage(process.pid)
            if now:
                _note(seen, now, time.perf_counter() - begun, found.of(printed))
        now = usage(process.pid)  # it is not waited for yet: what it computed is still known
        if now and log is not None:  # what it wrote there last, before it ended
            _note(seen, now, time.perf_counter() - begun, found.of(_appended(log, read)[0]))
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stdout.close()
    process.returncode = seen.code = os.waitstatus_to_exitcode(status)
    # not used.ru_maxrss: before it became the command the process was a copy of this one, and that counts there
    seen.end = Moment(time.perf_counter() - begun, used.ru_utime + used.ru_stime)
    return seen


def _note(seen: Watched, now: Usage, wall_s: float, numbers: Sequence[int]) -> None:
    """Note the moment of every step that was not seen before, and peaks."""
    for number in numbers:
        if number > 0:
            seen.steps.setdefault(number, Moment(wall_s, now.cpu_s))
    seen.peak_gb = max(seen.peak_gb, now.total_gb)
    seen.peak_anonymous_gb = max(seen.peak_anonymous_gb, now.anonymous_gb)


def _printed(descriptor: int) -> Iterator[str]:
    """Yield what a process prints as it comes, and "" every so often, until it closes its output."""
    while True:
        if not select.select([descriptor], [], [], EVERY_S)[0]:
            yield ""
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        yield data.decode(errors="replace")


def _appended(file: Path, read: int) -> tuple[str, int]:
    """Return what a file has after so many bytes, whole lines, and how many bytes that makes."""
    if not file.is_file():
        return "", read
    with file.open("rb") as opened:
        opened.seek(read)
        data = opened.read()
    data = data[: data.rfind(b"\n") + 1]
    return data.decode(errors="replace"), read + len(data)


def last_lines(said: str, count: int = 3) -> str:
    """Return the end of what a process printed, on one line."""
    lines = [line.strip() for line in re.split(r"[\r\n]", said) if line.strip()]
    return " | ".join(lines[-count:])
