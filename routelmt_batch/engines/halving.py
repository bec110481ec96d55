"""Keeps an engine busy, finds the rows that it fails on by bisection, and gets every other row answered.

When an engine dies, it is restarted, and every row that was in it is a suspect. When it fails on rows without
dying, those are the suspects. They are retried once as a batch, because the failure may have had another
cause. If the engine fails again, they are retried by halves, down to single rows. A row that fails alone is
given up. Meanwhile no other row is sent.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from routelmt_batch.engines.models import RowsFailed
from routelmt_batch.engines.process import EngineBroken, EngineDied

logger = logging.getLogger(__name__)
Rows = TypeVar("Rows")  # what an engine is sent; `select` picks rows from it
Result = TypeVar("Result")
Sent = TypeVar("Sent", contravariant=True)
Received = TypeVar("Received", covariant=True)

Failure = EngineDied | RowsFailed

# After this many single rows have failed in succession, the engine itself is tested; if it has never answered
# a row, after the first.
DOUBT_AFTER = 4
_CHUNK = 64  # the fewest rows of a message: each message costs a fixed time on either side


class Mortal(Protocol[Sent, Received]):
    """An engine that may die. `receive` may raise EngineDied or RowsFailed; `start` restarts a dead one."""

    def send(self, keys: Sequence[int], rows: Sent) -> None: ...

    def receive(self) -> Sequence[tuple[int, Received]]: ...

    def start(self) -> None: ...


@dataclass
class _Batch(Generic[Rows, Result]):
    """Rows of one call, by their indices; `left` counts those without a result."""

    rows: Rows
    left: int
    results: dict[int, Result] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


Row = tuple["_Batch[Rows, Result]", int, int]  # a batch, a row's index in it, tries before this one


class _Failed(NamedTuple, Generic[Rows, Result]):
    """Rows that the engine failed on together."""

    rows: Sequence[Row[Rows, Result]]
    error: Failure


class Halving(Generic[Rows, Result]):
    """Sends rows to an engine, at most `room` at once. Several threads may call `run`.

    Args:
        select: returns the rows at some indices.
        harmless: returns a row like the given ones that no working engine fails on.
        given_up: returns the result of a row that the engine fails on alone.
        again: whether a row with this result is sent again, `retries` times at most.
    """

    def __init__(
        self,
        engine: Mortal[Rows, Result],
        room: int,
        select: Callable[[Rows, Sequence[int]], Rows],
        harmless: Callable[[Rows], Rows],
        given_up: Callable[[Failure], Result],
        again: Callable[[Result], bool] = lambda result: False,
        retries: int = 0,
    ) -> None:
        self._engine = engine
        self._room = room
        self._select = select
        self._harmless = harmless
        self._given_up = given_up
        self._again = again
        self._retries = retries
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._waiting: deque[Row[Rows, Result]] = deque()
        self._inside: dict[int, Row[Rows, Result]] = {}
        self._searching = False
        self._error: Exception | None = None
        self._sent = threading.Condition(self._lock)
        self._proven = False  # whether the engine has ever answered a row
        self._failed_in_succession = 0
        threading.Thread(target=self._serve, daemon=True, name="engine").start()

    def run(self, rows: Rows, indices: Sequence[int]) -> Mapping[int, Result]:
        """Results of the rows at some indices, by index.

        Raises:
            EngineBroken: the engine fails on every row.
            EngineDied: it did not start again.
        """
        batch: _Batch[Rows, Result] = _Batch(rows, len(indices))
        with self._lock:
            self._waiting += [(batch, index, 0) for index in indices]
            self._fill()
            self._sent.notify()
        while indices and not batch.done.wait(1.0):
            if self._error:
                raise self._error
        return batch.results

    def _serve(self) -> None:
        try:
            while True:
                with self._sent:
                    self._sent.wait_for(lambda: self._inside)
                if failed := self._receive():
                    self._search(failed)
        except Exception as error:
            logger.exception("the engine is broken and is not restarted")
            self._error = error

    def _receive(self) -> _Failed[Rows, Result] | None:
        """Settle the rows that the engine answers, or return those that it failed on."""
        try:
            answered = self._engine.receive()
        except RowsFailed as error:
            with self._lock:
                self._searching = True
                return _Failed([self._inside.pop(key) for key in error.keys], error)
        except EngineDied as error:
            with self._lock:
                self._searching = True  # now: another call's rows would be lost in the dead engine
                suspects = list(self._inside.values())
                self._inside.clear()
            logger.warning("the engine died with %d rows in it (%s) and is restarted", len(suspects), error)
            self._engine.start()
            return _Failed(suspects, error)
        with self._lock:
            for key, result in answered:
                self._settle(self._inside.pop(key), result)
            self._fill()
        return None

    def _settle(self, row: Row[Rows, Result], result: Result) -> None:
        self._proven = True
        self._failed_in_succession = 0
        batch, at, tries = row
        if self._again(result) and tries < self._retries:
            self._waiting.append((batch, at, tries + 1))
        else:
            self._finish(batch, at, result)

    def _finish(self, batch: _Batch[Rows, Result], at: int, result: Result) -> None:
        batch.results[at] = result
        batch.left -= 1
        if not batch.left:
            batch.done.set()

    def _fill(self) -> None:
        """Send waiting rows if the engine has room."""
        room = self._room - len(self._inside)
        # Not for every row that leaves: only when a chunk or half of the engine is free, or all rows fit.
        if self._searching or room < min(_CHUNK, self._room // 2, len(self._waiting)):
            return
        self._send([self._waiting.popleft() for _ in range(min(room, len(self._waiting)))])

    def _send(self, chosen: Sequence[Row[Rows, Result]]) -> None:
        for _, group in itertools.groupby(chosen, key=lambda row: id(row[0])):
            of_batch = list(group)
            keys = [next(self._keys) for _ in of_batch]
            self._inside.update(zip(keys, of_batch, strict=True))
            rows = self._select(of_batch[0][0].rows, [at for _, at, _ in of_batch])
            self._engine.send(keys, rows)

    def _search(self, failed: _Failed[Rows, Result]) -> None:
        """Find a result for every row that the engine failed on, then send other rows again."""
        for group in (failed, *self._drained()):
            self._clear(group.rows)
        with self._lock:
            self._searching = False
            self._fill()

    def _drained(self) -> list[_Failed[Rows, Result]]:
        """Wait until no row is in the engine. Returns the failures in the meantime."""
        failures = []
        while self._inside:
            if failed := self._receive():
                failures.append(failed)
        return failures

    def _clear(self, suspects: Sequence[Row[Rows, Result]], together: bool = True) -> bool:
        """Retry suspects, first as one batch if `together`. Returns whether that batch was answered."""
        groups = [suspects]
        if together:
            with self._lock:
                self._send(suspects)
            failed = self._drained()
            for rows, error in failed:
                if len(rows) == 1:
                    self._give_up(rows[0], error)
            groups = [rows for rows, _ in failed if len(rows) > 1]
            if not failed:
                return True
        for rows in groups:
            first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            passed = self._clear(first)
            # If the first half passed, the second holds the cause: it is halved without being tried whole.
            self._clear(second, together=not passed or len(second) == 1)
        return False

    def _give_up(self, suspect: Row[Rows, Result], error: Failure) -> None:
        batch, at, _ = suspect
        self._failed_in_succession += 1
        if not self._proven or self._failed_in_succession == DOUBT_AFTER:
            self._try_harmless(self._harmless(self._select(batch.rows, [at])))
        with self._lock:
            self._finish(batch, at, self._given_up(error))

    def _try_harmless(self, row: Rows) -> None:
        """Raises EngineBroken if the engine fails on a harmless row, too."""
        try:
            self._engine.send([next(self._keys)], row)
            while not self._engine.receive():
                pass
        except EngineDied:
            raise EngineBroken("the engine died on single rows, and on a harmless test row") from None
        except RowsFailed as error:  # its message may be shown: it can quote only the harmless row
            raise EngineBroken(f"it fails even on a harmless row: {error.name}: {error.words}") from None
        self._proven = True
        self._failed_in_succession = 0
