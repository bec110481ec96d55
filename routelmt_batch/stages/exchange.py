"""Exchange: tasks send rows to the tasks that need them, by files below a job's work folder.

Each sender writes one file with a record batch for every receiver, and a receiver reads its batch of every
file. So a process holds the rows of one sender or of one receiver, however many rows there are.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.files.location import Location
from routelmt_batch.files.write import remove_folder, write_file
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Stop

_FOLDER = "exchange-"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


@contextlib.contextmanager
def exchange_folder(workspace: AnyWorkspace) -> Iterator[Location]:
    """A folder for exchanges, which is removed at the end. Each run has its own, named by its epoch."""
    workspace.ledger.check()
    folder = workspace.folder.work / _name(workspace.ledger.epoch)
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_left(workspace: AnyWorkspace) -> None:
    """Remove what killed runs left."""
    work, ledger = workspace.folder.work, workspace.ledger
    if left := [name for name in work.names() if name.startswith(_FOLDER)]:
        ledger.check()
        for name in left:
            if name < _name(ledger.epoch):  # not a later run's, if there is one by now
                remove_folder(work / name)


def _name(epoch: int) -> str:
    return f"{_FOLDER}{epoch:06d}"


@dataclass(frozen=True)
class Exchange:
    """Rows of one schema that go to numbered receivers. It is sent to the tasks."""

    folder: Location
    schema: pa.Schema
    receivers: int

    def send(self, rows: pa.Table, to: npt.NDArray[np.int64]) -> str:
        """Write each row for the receiver `to`; rows of one receiver keep their order.

        Returns:
            The file's name, for `receive`.
        """
        order = np.argsort(to, kind="stable")
        starts = np.searchsorted(to[order], np.arange(self.receivers + 1))
        rows = rows.cast(self.schema).take(order)

        def write(draft: Path) -> None:
            with pa.ipc.new_file(draft, self.schema, options=_COMPRESSED) as writer:
                for start, end in itertools.pairwise(starts):
                    part = rows.slice(start, end - start).combine_chunks()
                    writer.write_batch(pa.RecordBatch.from_arrays(_arrays(part), schema=self.schema))

        name = f"{uuid.uuid4().hex}.arrow"
        write_file(self.folder / name, write, lambda draft: None, "exchange")
        return name

    def receive(self, files: Iterable[str], receiver: int, stop: Stop) -> pa.Table:
        """The rows that were sent to a receiver, in the order of the files."""
        batches = []
        for name in files:
            stop()
            with (self.folder / name).open() as source, pa.ipc.open_file(source) as file:
                batches.append(file.get_batch(receiver))
        return pa.Table.from_batches(batches, self.schema)


def _arrays(table: pa.Table) -> list[pa.Array]:
    """The columns of a table whose chunks are combined; one of no rows may have no chunk."""
    return [
        column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in table.columns
    ]
