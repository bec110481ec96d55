"""Finds the rows that kill an engine, by halves, and takes every other row through. It knows no engine.

When an engine dies, every row that was in it is a suspect. It is started anew and the suspects are sent
once more together, since whatever else may have killed it. If it dies again, they are sent by halves, down
to single rows: one that kills it alone is given up. In the meantime no other row gets in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)
Row = TypeVar("Row")
Result = TypeVar("Result")

# After so many single rows that kill it, with none between that passes, it may be the engine's fault.
DOUBT_AFTER = 4


class EngineDied(Exception):
    """The engine is gone, and with it what was in it."""


class EngineBroken(Exception):
    """The engine dies whatever it is sent."""


@dataclass
class _Suspect(Generic[Row, Result]):
    row: Row
    outcome: asyncio.Future[Result | None] = field(default_factory=asyncio.Future)


class Halving(Generic[Row, Result]):
    """Sends rows to an engine, at most `room` at once.

    Args:
        ask: gives a row's result.
        restart: replaces a dead engine. It may block: there is nothing else to do.
        harmless: of a row, one like it that no sound engine dies of.

    Raises (of `ask`):
        EngineDied: the engine died while it had the row.
    """

    def __init__(
        self,
        ask: Callable[[Row], Awaitable[Result]],
        restart: Callable[[], None],
        room: int,
        harmless: Callable[[Row], Row],
    ) -> None:
        self._ask = ask
        self._restart = restart
        self._harmless = harmless
        self._room = asyncio.Semaphore(room)
        self._open = asyncio.Event()
        self._open.set()
        self._inside = 0
        self._suspects: list[_Suspect[Row, Result]] = []
        self._search: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._killed_in_succession = 0

    async def send(self, row: Row) -> Result | None:
        """The row's result; None if it kills the engine.

        Raises:
            EngineBroken: so does every row.
            Exception: what `ask` or `restart` raises.
        """
        async with self._room:
            while not self._open.is_set():  # of those that wait one may come upon a dead engine again
                await self._open.wait()
            if self._error:
                raise self._error
            self._inside += 1
            try:
                return await self._answer(row)
            except EngineDied:
                self._open.clear()
                suspect: _Suspect[Row, Result] = _Suspect(row)
                self._suspects.append(suspect)
            finally:
                self._inside -= 1
                if self._suspects and not self._inside:
                    self._search = asyncio.create_task(self._clear())
            return await suspect.outcome

    async def _answer(self, row: Row) -> Result:
        result = await self._ask(row)
        self._killed_in_succession = 0
        return result

    async def _clear(self) -> None:
        """Give every suspect its outcome, then let rows in again: after an error to meet it, too."""
        suspects, self._suspects = self._suspects, []
        logger.warning("the engine died with %d rows in it, which are sent to a new one", len(suspects))
        try:
            self._restart()
            await self._settle(suspects)
        except Exception as error:
            self._error = error
            for suspect in suspects:
                if not suspect.outcome.done():
                    suspect.outcome.set_exception(error)
        self._open.set()

    async def _settle(self, suspects: Sequence[_Suspect[Row, Result]], together: bool = True) -> bool:
        """Send suspects, first all together unless told otherwise. True: the engine lived."""
        if together:
            suspects = await self._left(suspects)
            if not suspects:
                return True
        if len(suspects) == 1:
            await self._give_up(suspects[0])
            return False
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        lived = await self._settle(first)
        # If it was not the first half, it was the second: no need to see it die of the whole of it.
        await self._settle(second, together=not lived or len(second) == 1)
        return False

    async def _left(self, suspects: Sequence[_Suspect[Row, Result]]) -> list[_Suspect[Row, Result]]:
        """Send suspects together. Returns those in it when the engine died, after its restart."""
        results = await asyncio.gather(
            *(self._answer(suspect.row) for suspect in suspects), return_exceptions=True
        )
        left = []
        for suspect, result in zip(suspects, results, strict=True):
            if isinstance(result, EngineDied):
                left.append(suspect)
            elif isinstance(result, BaseException):
                suspect.outcome.set_exception(result)
            else:
                suspect.outcome.set_result(result)
        if left:
            logger.warning("the engine died again, with %d of %d rows in it", len(left), len(suspects))
            self._restart()
        return left

    async def _give_up(self, suspect: _Suspect[Row, Result]) -> None:
        self._killed_in_succession += 1
        if self._killed_in_succession == DOUBT_AFTER:
            try:
                await self._answer(self._harmless(suspect.row))
            except EngineDied:
                raise EngineBroken(f"the engine died of {DOUBT_AFTER} rows, and of a harmless one") from None
        suspect.outcome.set_result(None)
