"""Work in threads that a signal can stop: waiting items are dropped, running work is asked to stop."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Stop = Callable[[], None]

_MOST_THREADS = 8
_AHEAD = 4  # items a thread


class Stopped(Exception):
    """Raised in a thread whose result is no longer needed."""


class Each(Protocol):
    """Runs work on items: see `each`, and engines.lanes.Engine.each, which uses all nodes."""

    def __call__(
        self, work: Callable[[Any, Stop], Any], items: Iterable[Any], /
    ) -> AbstractContextManager[Iterator[Any]]: ...


@contextmanager
def each(work: Callable[[Item, Stop], Result], items: Iterable[Item]) -> Iterator[Iterator[Result]]:
    """Results of `work(item, stop)` in the items' order; `work` must call `stop()` regularly.

    Only a few items are taken ahead of the results that the caller has read, however many there are. If the
    caller leaves early (an error, a signal), `stop` raises in every thread at its next call.
    """
    leaving = threading.Event()

    def stop() -> None:
        if leaving.is_set():
            raise Stopped

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)

    def results() -> Iterator[Result]:
        left = iter(items)
        running = deque(pool.submit(work, item, stop) for item in itertools.islice(left, _AHEAD * threads))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, item, stop) for item in itertools.islice(left, 1))

    try:
        yield results()
    finally:
        leaving.set()
        pool.shutdown(cancel_futures=True)
