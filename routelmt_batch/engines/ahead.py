"""Engines that start before their pass. Its work units are not known yet: they come through an inbox."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from routelmt_batch.engines.lanes import Lane

if TYPE_CHECKING:
    from ray.data import Dataset

_DISMISS_S = 10.0


class Inbox:
    """A Ray actor on which the reading tasks wait until the pass begins."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._groups: Mapping[str, list[bytes]] = {}

    async def give(self, groups: Mapping[str, list[bytes]]) -> None:
        """Set the groups of work units that each lane reads; a lane that is not named reads nothing."""
        self._groups = groups
        self._begun.set()

    async def wait(self, label: str) -> list[bytes]:
        await self._begun.wait()
        return self._groups.get(label, [])


class Waiting:
    """Waits for a lane's work, and yields one row for each reading task."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        import ray

        for label in block["label"].to_pylist():
            for group in ray.get(self._inbox.wait.remote(label)):
                yield pa.table({"group": pa.array([group], pa.binary())})


class Ahead:
    """A pass whose engines are started and wait for work. Its Dataset runs in a separate thread."""

    def __init__(self, lanes: Sequence[Lane], inbox: Any, roll: Any, dataset: Dataset, column: str) -> None:
        self.roll = roll
        self._lanes = {lane.label: lane for lane in lanes}
        self._inbox = inbox
        self._outcomes: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(dataset, column), daemon=True, name="ahead")
        self._thread.start()

    def serves(self, lanes: Sequence[Lane]) -> bool:
        """Whether its lanes include these: they may differ in units and pending rows alone."""
        return all(
            lane.label in self._lanes
            and lane == replace(self._lanes[lane.label], units=lane.units, pending=lane.pending)
            for lane in lanes
        )

    def run(self, groups: Mapping[str, list[bytes]]) -> Iterator[bytes]:
        """Give the engines their work, and yield receipts."""
        import ray

        ray.get(self._inbox.give.remote(groups))
        while (outcome := self._outcomes.get()) is not None:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def dismiss(self) -> None:
        """Stop the engines, which are not needed."""
        with contextlib.suppress(Exception):  # they may have failed, which does not matter any more
            self._inbox.give.remote({})
        self._thread.join(_DISMISS_S)

    def _run(self, dataset: Dataset, column: str) -> None:
        try:
            for receipt in receipts(dataset, column):
                self._outcomes.put(receipt)
        except Exception as error:
            self._outcomes.put(error)
        self._outcomes.put(None)


def receipts(dataset: Dataset, column: str) -> Iterator[bytes]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.column(column).to_pylist()
