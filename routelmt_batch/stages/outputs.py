"""Output shards: each input shard is written with the same rows in the same order and columns added.

It reads the input again with pyarrow, so that all columns keep their types. The caller gives the added
columns and counts the rows. Shards are written in tasks on all nodes; the driver commits them.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.corpus.units import UNIT_ROWS, Unit, check_unchanged, groups, read_unit, units
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import InputChanged, RoutelmtError
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.files.record import Record
from routelmt_batch.files.write import sha256, sha256_at, write_file, write_json
from routelmt_batch.names import one_line
from routelmt_batch.progress import Bars
from routelmt_batch.rows import Stage
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.work import OF_JOB, UnitWork, work_on
from routelmt_batch.store.folder import Folder, damaged, is_whole
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.log import Fence
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Stop

DONE, DONE_WITH_FAILURES = 0, 3  # exit codes
_GROUP_BYTES = 64 << 20  # of an output's row group in memory


class Counted(Protocol):
    """Counts of one shard, made while it is written."""

    rows: int

    def report(self) -> dict[str, Any]: ...


class Columns(Protocol):
    """Gives the added columns of a unit's rows, and counts the rows in `counted`. It is pickled."""

    def __call__(self, work: UnitWork, batch: pa.RecordBatch, counted: Any) -> Mapping[str, pa.Array]: ...


@dataclass(frozen=True)
class Addition:
    """Columns to add: `columns` makes them from the committed rows of `stages`, and counts in what `counter`
    made."""

    fields: Sequence[pa.Field]
    counter: Callable[[], Any]
    columns: Columns
    stages: Sequence[Stage] = OF_JOB
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardOutput:
    """A written output shard, as _SUCCESS and the ledger name it."""

    shard: str
    rows: int
    bytes: int
    sha256: str
    version: str  # see files.location.Stat


def write_shards(workspace: AnyWorkspace, addition: Addition, engine: Engine, bars: Bars) -> None:
    """Write every output shard that is not committed yet, and then its report.

    Raises:
        InputChanged: it names the shards that changed since they were first read; the others are written
            first.
    """
    ledger, rows = workspace.ledger, workspace.shard_rows
    done = {event["shard"] for event in committed_outputs(workspace)}
    todo = [shard for shard in workspace.shards if shard.name not in done]
    if not todo:
        return
    lost: list[InputChanged] = []
    started, total = time.time(), sum(rows.values())
    pending = sum(rows[shard.name] for shard in todo)
    work = (work_on(workspace, Unit(shard, 0, 0, rows[shard.name]), addition.stages) for shard in todo)
    write = _ShardWriter(workspace.folder, addition, workspace.spec.output.compression, ledger.fence())
    with (
        bars.rows("assemble", total, total - pending) as advance,
        engine.each(write, groups(work, lambda shard: shard.unit)) as written,
    ):
        for outcomes in written:
            for outcome in outcomes:
                if isinstance(outcome, InputChanged):
                    lost.append(outcome)
                    continue
                ledger.record("output", now=False, **vars(outcome))
                advance(outcome.rows)
    record_time(ledger, "assemble", pending, started)
    if lost:
        raise InputChanged("\n".join(map(str, lost)))


def committed_outputs(workspace: AnyWorkspace) -> list[dict[str, Any]]:
    """Ledger lines of the output shards that are still there and need not be written again."""
    folder = workspace.folder
    return [event for event in current_outputs(workspace.ledger) if is_whole(folder, event)]


def current_outputs(ledger: Ledger) -> list[dict[str, Any]]:
    """Ledger lines of output shards, without those that `--retry-failed` opened again."""
    current: dict[str, dict[str, Any]] = {}
    for event in ledger.events:
        if event["event"] == "output":
            current[event["shard"]] = event
        elif event["event"] == "retry_failed":
            for shard in event["shards"]:
                current.pop(shard, None)
    return list(current.values())


class Verdict(Record):
    """A condition of `--fail-if`: its value, whether it holds, and why there is no value."""

    condition: str
    value: float | None
    holds: bool
    why: str | None


class Report(Record):
    """What `reports/job.json` contains both for a job and for labels."""

    name: str
    rows: int
    shards: int
    unreadable: dict[str, str] = Field(description="Shards that could not be read, and why.")
    fail_if: list[Verdict] | None = None

    @classmethod
    def read(cls, path: Location | Path) -> Self:
        """The report in a file. Raises WorkChanged if the file is damaged."""
        try:
            return super().read(path)
        except ValueError:
            raise damaged(path) from None

    @classmethod
    def finished(cls, folder: Folder) -> Self | None:
        """The report of a finished job whose output is still there, or None."""
        return cls.read(folder.job_report) if folder.is_finished() else None

    @property
    @abstractmethod
    def failed_rows(self) -> int:
        """Rows that a model failed on."""

    @property
    @abstractmethod
    def skipped_rows(self) -> int:
        """Rows that were given to no model."""

    @property
    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The figures that a scheduler keeps."""

    @property
    def exit_code(self) -> int:
        """0 done; 3 done, but a model failed on rows or a shard could not be read."""
        return DONE_WITH_FAILURES if self.failed_rows or self.unreadable else DONE


def write_report(workspace: AnyWorkspace, report: Report, engine: Engine) -> None:
    """Re-verify every output shard, on all nodes, and write `reports/job.json`.

    Raises:
        RoutelmtError: an output shard changed after it was committed; it is named.
    """
    workspace.ledger.check()
    with engine.each(_Verifier(workspace.folder), current_outputs(workspace.ledger)) as verified:
        for changed in verified:
            if changed:
                raise RoutelmtError(
                    f"{changed}: changed after it was written. Remove the file and run the same command "
                    "again: it is written again from the committed translations"
                )
    report.write(workspace.folder.job_report, "report", workspace.ledger.check)


@dataclass(frozen=True)
class _Verifier:
    """Returns the output shard that a line of the ledger names, if it is not as it was written."""

    folder: Folder

    def __call__(self, output: Mapping[str, Any], stop: Stop) -> Location | None:
        path = self.folder.data(output["shard"])
        stat = path.stat()
        if path.has_versions and stat and stat.version == output["version"]:
            return None
        return None if stat and sha256(path, stop) == output["sha256"] else path


def succeed(workspace: AnyWorkspace) -> None:
    """Write `_SUCCESS`, the last file: it lists every output shard with its rows, bytes and sha256."""
    workspace.ledger.check()
    contents = success(workspace.ledger, workspace.rows, workspace.unreadable)
    write_json(workspace.folder.success, contents, "success", workspace.ledger.check)


def success(ledger: Ledger, rows: int, unreadable: Mapping[str, str]) -> dict[str, Any]:
    """What `_SUCCESS` says of a finished job with so many rows."""
    outputs = sorted(current_outputs(ledger), key=lambda event: event["shard"].encode())
    return {
        "shards": [{key: output[key] for key in ("shard", "rows", "bytes", "sha256")} for output in outputs],
        "rows": rows,
        "unreadable": dict(unreadable),
    }


@dataclass(frozen=True)
class _ShardWriter:
    """Writes output shards and their reports, in a task."""

    folder: Folder
    addition: Addition
    compression: str
    check: Fence

    def __call__(self, shards: Sequence[UnitWork], stop: Stop) -> list[ShardOutput | InputChanged]:
        return [self._attempt(work, stop) for work in shards]

    def _attempt(self, work: UnitWork, stop: Stop) -> ShardOutput | InputChanged:
        try:
            return self._write(work, stop)
        except InputChanged as error:
            return error

    def _write(self, work: UnitWork, stop: Stop) -> ShardOutput:
        shard, rows = work.unit.shard, work.unit.rows
        check_unchanged(shard, stop)
        counted: Counted = self.addition.counter()
        digests: list[str] = []

        def write(draft: Path) -> None:
            with pq.ParquetWriter(draft, self._schema(shard), compression=self.compression) as writer:
                for group in units([shard], rows, most_rows=max(shard.row_groups, default=0) or 1):
                    for table in self._tables(work, group, counted, writer.schema, stop):
                        writer.write_table(table)

        def verify(draft: Path) -> None:
            written = pq.read_metadata(draft).num_rows
            if written != rows or written != counted.rows:
                raise RoutelmtError(
                    f"{one_line(shard.name)}: {written} rows written and {counted.rows} counted, but the "
                    f"shard has {rows}: please report it"
                )
            digests.append(sha256_at(draft))

        stat = write_file(self.folder.data(shard.name), write, verify, "output", self.check)
        written = ShardOutput(shard.name, rows, stat.bytes, digests[0], stat.version)
        write_json(
            self.folder.report(shard.name),
            {"shard": shard.name, **counted.report(), "bytes": written.bytes, "sha256": written.sha256},
            "report",
            self.check,
        )
        return written

    def _schema(self, shard: Shard) -> pa.Schema:
        with parquet_file(shard.location) as source:
            schema = source.schema_arrow
        for added in self.addition.fields:
            schema = schema.append(added)
        if self.addition.metadata:
            schema = schema.with_metadata({**(schema.metadata or {}), **self.addition.metadata})
        return schema

    def _tables(
        self, work: UnitWork, group: Unit, counted: Any, schema: pa.Schema, stop: Stop
    ) -> Iterator[pa.Table]:
        """The output of one row group of the input; a large one in several tables that fit in memory."""
        waiting: list[pa.RecordBatch] = []
        for first, batch in read_unit(group):
            stop()
            here = work.within(replace(group, first_row=first, rows=batch.num_rows))
            columns = self.addition.columns(here, batch, counted)
            arrays = [*batch.columns, *(columns[added.name] for added in self.addition.fields)]
            waiting.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            rows, size = (sum(getattr(part, name) for part in waiting) for name in ("num_rows", "nbytes"))
            if rows >= UNIT_ROWS or size >= _GROUP_BYTES:
                yield pa.Table.from_batches(waiting)
                waiting = []
        if waiting:
            yield pa.Table.from_batches(waiting)
