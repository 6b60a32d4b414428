"""`limner` as two processes that share a run, forked from one that has imported everything.

`python -m tests.pipeline.two_ranks '[["train", ...], ...]'` runs one command line after the other, with the same
environment that torchrun gives, and exits with 1 at the first that fails.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from benchmarks.launcher import warm_up


def main() -> None:
    """Import everything, then run each command line."""
    warm_up()
    for words in json.loads(sys.argv[1]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [_fork(words, rank, port) for rank in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]
        if any(codes):
            sys.exit(f"{words}: {codes}")


def _fork(words: Sequence[str], rank: int, port: int) -> int:
    process = os.fork()
    if process == 0:
        _be_limner(words, rank, port)
    return process


def _be_limner(words: Sequence[str], rank: int, port: int) -> NoReturn:
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        sys.argv = ["limner", *words]
        from limner.cli import main as limner

        limner()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
