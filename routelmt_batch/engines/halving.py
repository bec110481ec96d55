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

# Single rows that kill it one after the other, with none between that passes: it is the engine's fault.
MOST_IN_SUCCESSION = 4


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

    Raises (of `ask`):
        EngineDied: the engine died while it had the row.
    """

    def __init__(
        self, ask: Callable[[Row], Awaitable[Result]], restart: Callable[[], None], room: int
    ) -> None:
        self._ask = ask
        self._restart = restart
        self._room = asyncio.Semaphore(room)
        self._open = asyncio.Event()
        self._open.set()
        self._inside = 0
        self._suspects: list[_Suspect[Row, Result]] = []
        self._search: asyncio.Task[None] | None = None
        self._killed_in_succession = 0

    async def send(self, row: Row) -> Result | None:
        """The row's result; None if it kills the engine.

        Raises:
            EngineBroken: so do other rows, one after the other.
            Exception: what `ask` or `restart` raises.
        """
        async with self._room:
            await self._open.wait()
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
        """Give every suspect its outcome, then let rows in again. After an error nobody is let in."""
        suspects, self._suspects = self._suspects, []
        logger.warning("the engine died with %d rows in it, which are sent to a new one", len(suspects))
        try:
            self._restart()
            await self._settle(suspects)
        except Exception as error:
            for suspect in suspects:
                if not suspect.outcome.done():
                    suspect.outcome.set_exception(error)
        else:
            self._open.set()

    async def _settle(self, suspects: Sequence[_Suspect[Row, Result]], together: bool = True) -> bool:
        """Send suspects, first all together unless told otherwise. True: the engine lived."""
        if together:
            suspects = await self._left(suspects)
            if not suspects:
                return True
        if len(suspects) == 1:
            self._give_up(suspects[0])
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

    def _give_up(self, suspect: _Suspect[Row, Result]) -> None:
        self._killed_in_succession += 1
        if self._killed_in_succession == MOST_IN_SUCCESSION:
            raise EngineBroken(f"the engine died of {MOST_IN_SUCCESSION} rows, one after the other")
        suspect.outcome.set_result(None)
