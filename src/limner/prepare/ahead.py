"""Work ahead in threads, with results in order and a bounded number of them waiting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from limner.pictures.decode import without_warnings

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) for each item in order, computed by threads a little ahead of the caller.

    Decoding, hashing and resizing pictures happen outside the interpreter's lock, so threads are enough.
    """
    workers = min(16, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with without_warnings(), ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
