"""Work ahead in threads, with results in order and a bounded number of them waiting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from limner.pictures.decode import without_warnings
from limner.types import Batch, Source

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


@contextmanager
def fetched_ahead(source: Source, workers: int, *, begin: int = 0) -> Iterator[Source]:
    """Within this block, have the coming batches of `source` fetched by threads; none of them outlives the block.

    Batches before number `begin` are fetched when they are asked for, and none ahead of them.
    """
    if workers == 0:
        yield source
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    try:
        yield _Ahead(source, pool, workers, begin)
    finally:
        pool.shutdown(cancel_futures=True)


class _Ahead:
    """A source that begins to fetch the next batches when one is asked for."""

    def __init__(self, source: Source, pool: ThreadPoolExecutor, depth: int, begin: int) -> None:
        self._source, self._pool, self._depth, self._begin = source, pool, depth, begin
        self._coming: dict[tuple[int, int], Future[Batch]] = {}

    def batch(self, step: int, *, seed: int) -> Batch:
        """Return a batch; what goes wrong in fetching it is raised here and not before."""
        if step < self._begin:
            return self._source.batch(step, seed=seed)
        wanted = [(number, seed) for number in range(step, step + self._depth + 1)]
        for key in self._coming.keys() - wanted:
            self._coming.pop(key).cancel()
        for key in wanted:
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._source.batch, key[0], seed=seed)
        return self._coming.pop(wanted[0]).result()
