"""Work in threads that a signal can stop: waiting items are dropped, running work is asked to stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Stop = Callable[[], None]

_MOST_THREADS = 8


class Stopped(Exception):
    """Raised in a thread whose result is no longer needed."""


@contextmanager
def each(work: Callable[[Item, Stop], Result], items: Iterable[Item]) -> Iterator[Iterator[Result]]:
    """Results of `work(item, stop)` in the items' order; `work` must call `stop()` regularly.

    If the caller leaves early (an error, a signal), `stop` raises in every thread at its next call.
    """
    leaving = threading.Event()

    def stop() -> None:
        if leaving.is_set():
            raise Stopped

    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        yield pool.map(lambda item: work(item, stop), items)
    finally:
        leaving.set()
        pool.shutdown(cancel_futures=True)
