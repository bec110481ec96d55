"""Keeps an engine busy, finds the rows that kill it by halves, and takes every other row through.

When an engine dies, every row that was in it is a suspect. It is started anew and the suspects are sent
once more together, since something else may have killed it. If it dies again, they are sent by halves, down
to single rows: one that kills it alone is given up. In the meantime no other row gets in.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from routelmt_batch.engines.process import EngineBroken, EngineDied

logger = logging.getLogger(__name__)
Rows = TypeVar("Rows")  # what an engine is sent: `select` takes some of them
Result = TypeVar("Result")
Sent = TypeVar("Sent", contravariant=True)
Received = TypeVar("Received", covariant=True)

# After so many single rows that kill it, with none between that passes, it may be the engine's fault.
DOUBT_AFTER = 4
_CHUNK = 64  # rows of a message, at least: each costs a fixed time on either side


class Mortal(Protocol[Sent, Received]):
    """An engine that may die. Each call may raise EngineDied; `start` replaces a dead one."""

    def send(self, keys: Sequence[int], rows: Sent) -> None: ...

    def receive(self) -> Sequence[tuple[int, Received]]: ...

    def start(self) -> None: ...


@dataclass
class _Batch(Generic[Rows, Result]):
    """Rows of one call, by their places; `left` counts those without a result."""

    rows: Rows
    left: int
    results: dict[int, Result | None] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


Place = tuple["_Batch[Rows, Result]", int, int]  # a batch, a row's place in it, tries before this one


class Halving(Generic[Rows, Result]):
    """Sends rows to an engine, at most `room` at once. Its calls may come from several threads.

    Args:
        select: the rows at some places.
        harmless: of some rows, like ones that no sound engine dies of.
        again: whether a result is none yet: the row is sent again, `retries` times at most.
    """

    def __init__(
        self,
        engine: Mortal[Rows, Result],
        room: int,
        select: Callable[[Rows, Sequence[int]], Rows],
        harmless: Callable[[Rows], Rows],
        again: Callable[[Result], bool] = lambda result: False,
        retries: int = 0,
    ) -> None:
        self._engine = engine
        self._room = room
        self._select = select
        self._harmless = harmless
        self._again = again
        self._retries = retries
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._waiting: deque[Place[Rows, Result]] = deque()
        self._inside: dict[int, Place[Rows, Result]] = {}
        self._searching = False
        self._error: Exception | None = None
        self._some = threading.Condition(self._lock)
        self._killed_in_succession = 0
        threading.Thread(target=self._serve, daemon=True, name="engine").start()

    def run(self, rows: Rows, places: Sequence[int]) -> Mapping[int, Result | None]:
        """Results of the rows at some places, by place; None where the row kills the engine.

        Raises:
            EngineBroken: the engine fails whatever it is sent.
            EngineDied: it did not start again.
        """
        batch: _Batch[Rows, Result] = _Batch(rows, len(places))
        with self._lock:
            self._waiting += [(batch, place, 0) for place in places]
            self._fill()
            self._some.notify()
        while places and not batch.done.wait(1.0):
            if self._error:
                raise self._error
        return batch.results

    def _serve(self) -> None:
        try:
            while True:
                with self._some:
                    self._some.wait_for(lambda: self._inside)
                try:
                    answered = self._engine.receive()
                except EngineDied:
                    self._search()
                    continue
                with self._lock:
                    for key, result in answered:
                        self._settle(self._inside.pop(key), result)
                    self._fill()
        except Exception as error:
            logger.exception("the engine is given up")
            self._error = error

    def _settle(self, place: Place[Rows, Result], result: Result) -> None:
        self._killed_in_succession = 0
        batch, at, tries = place
        if self._again(result) and tries < self._retries:
            self._waiting.append((batch, at, tries + 1))
        else:
            self._finish(batch, at, result)

    def _finish(self, batch: _Batch[Rows, Result], at: int, result: Result | None) -> None:
        batch.results[at] = result
        batch.left -= 1
        if not batch.left:
            batch.done.set()

    def _fill(self) -> None:
        """Send rows that wait, as far as there is room."""
        room = self._room - len(self._inside)
        # Not for every row that leaves: but whenever some are wanted, or the last ones are here.
        if self._searching or room < min(_CHUNK, self._room // 2, len(self._waiting)):
            return
        self._send([self._waiting.popleft() for _ in range(min(room, len(self._waiting)))])

    def _send(self, places: Sequence[Place[Rows, Result]]) -> None:
        for _, group in itertools.groupby(places, key=lambda place: id(place[0])):
            some = list(group)
            keys = [next(self._keys) for _ in some]
            self._inside.update(zip(keys, some, strict=True))
            rows = self._select(some[0][0].rows, [at for _, at, _ in some])
            self._engine.send(keys, rows)

    def _search(self) -> None:
        """Give every row that was in a dead engine its result, then let others in again."""
        with self._lock:
            self._searching = True
            suspects = list(self._inside.values())
            self._inside.clear()
        logger.warning("the engine died with %d rows in it, which are sent to a new one", len(suspects))
        self._engine.start()
        self._clear(suspects)
        with self._lock:
            self._searching = False
            self._fill()

    def _clear(self, suspects: Sequence[Place[Rows, Result]], together: bool = True) -> bool:
        """Send suspects, first all together unless told otherwise. True: the engine lived."""
        if together:
            suspects = self._left(suspects)
            if not suspects:
                return True
        if len(suspects) == 1:
            self._give_up(suspects[0])
            return False
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        lived = self._clear(first)
        # If it was not the first half, it was the second: no need to see it die of the whole of it.
        self._clear(second, together=not lived or len(second) == 1)
        return False

    def _left(self, suspects: Sequence[Place[Rows, Result]]) -> list[Place[Rows, Result]]:
        """Send suspects together. Returns those in it when the engine died, after its restart."""
        with self._lock:
            self._send(suspects)
        try:
            while self._inside:
                for key, result in self._engine.receive():
                    with self._lock:
                        self._settle(self._inside.pop(key), result)
        except EngineDied:
            left = list(self._inside.values())
            self._inside.clear()
            logger.warning("the engine died again, with %d of %d rows in it", len(left), len(suspects))
            self._engine.start()
            return left
        return []

    def _give_up(self, suspect: Place[Rows, Result]) -> None:
        batch, at, _ = suspect
        self._killed_in_succession += 1
        if self._killed_in_succession == DOUBT_AFTER:
            try:
                self._engine.send([next(self._keys)], self._harmless(self._select(batch.rows, [at])))
                while not self._engine.receive():
                    pass
            except EngineDied:
                raise EngineBroken(f"the engine died of {DOUBT_AFTER} rows, and of a harmless one") from None
            self._killed_in_succession = 0
        with self._lock:
            self._finish(batch, at, None)
