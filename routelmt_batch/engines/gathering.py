"""Gathers the results of several calls into one part: an engine takes small batches, and a job commits large
parts.

A call returns when its rows are written. So if its actor dies before, Ray calls again, and nothing is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

# A part is closed this long after its first rows, or after a tenth of the time that the engine has worked
# if that is shorter: a crash costs about a minute of work, and a short job less.
_MOST_S, _LEAST_S, _SHARE = 60.0, 2.0, 0.1
# A part is closed after so long without a row in the engine: then no more rows may come.
_IDLE_S = 0.25


@dataclass(frozen=True)
class PartLimits:
    """When a part is closed: at so many rows or bytes, or when so many calls wait for it."""

    rows: int
    calls: int
    bytes: int = 64 << 20


class Written(NamedTuple):
    """A written part, and the number of calls whose rows are in it: each of them returns it."""

    part: Any
    calls: int


@dataclass
class _Group:
    """Results of the calls that wait for the same part."""

    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    since: float = field(default_factory=time.monotonic)
    closed: bool = False
    written: threading.Event = field(default_factory=threading.Event)
    part: Any = None
    error: BaseException | None = None

    def add(self, results: pa.Table) -> None:
        if not self.tables:
            self.since = time.monotonic()
        self.tables.append(results)
        self.rows += results.num_rows
        self.bytes += results.nbytes


class Gathering:
    """Writes the results of calls that run at once. `write` writes a part of some RESULTS."""

    def __init__(self, write: Callable[[pa.Table], Any], limits: PartLimits) -> None:
        self._write = write
        self._limits = limits
        self._changed = threading.Condition()
        self._group = _Group()
        self.calls = 0  # those that have not returned
        self.written = 0  # parts
        self._working = 0
        self._began = self._idle_since = time.monotonic()

    def run(self, work: Callable[[], pa.Table]) -> Written:
        """Do a call's work, and return when its RESULTS are written. Raises what either raises."""
        with self._changed:
            self.calls += 1
        try:
            return self._gather(self._worked(work))
        finally:
            with self._changed:
                self.calls -= 1

    def _worked(self, work: Callable[[], pa.Table]) -> pa.Table:
        with self._changed:
            self._working += 1
        try:
            return work()
        finally:
            with self._changed:
                self._working -= 1
                self._idle_since = time.monotonic()
                self._changed.notify_all()

    def _gather(self, results: pa.Table) -> Written:
        with self._changed:
            group = self._group
            group.add(results)
            while not group.closed and (left := self._seconds_left(group)) > 0:
                self._changed.wait(left)
            writes = not group.closed
            if writes:
                group.closed = True
                self._group = _Group()
                self._changed.notify_all()
        if writes:
            try:
                group.part = self._write(pa.concat_tables(group.tables))
                self.written += 1
            except BaseException as error:
                group.error = error
            finally:
                group.written.set()
        group.written.wait()
        if group.error:
            raise group.error
        return Written(group.part, len(group.tables))

    def _seconds_left(self, group: _Group) -> float:
        """How long a part still waits for more rows."""
        limits = self._limits
        if group.rows >= limits.rows or group.bytes >= limits.bytes or len(group.tables) >= limits.calls:
            return 0.0
        now = time.monotonic()
        until = group.since + min(_MOST_S, max(_LEAST_S, _SHARE * (now - self._began)))
        if not self._working:
            until = min(until, self._idle_since + _IDLE_S)
        return until - now
