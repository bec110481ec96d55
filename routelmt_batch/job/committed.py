"""Checks a job's committed parts: each is what was committed, and together they have no row too many."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from routelmt_batch.corpus.units import UNIT_ROWS
from routelmt_batch.progress import Bars
from routelmt_batch.rows import QUALITY, SAMPLE, SCORES, STAGES, Stage
from routelmt_batch.stages.passes import spans
from routelmt_batch.store.ledger import Ledger, PartEntry
from routelmt_batch.threads import Stop, each

# How often a row may be in a stage: once for each of two models, unless said otherwise.
_TRIES = {SCORES.name: 1, SAMPLE.name: 1, QUALITY.name: 3}
_WINDOW_ROWS = 16 * UNIT_ROWS  # of a shard that are compared at a time


def faults(ledger: Ledger, rows: Mapping[str, int], bars: Bars) -> Iterator[tuple[PartEntry, str]]:
    """Committed parts that are not whole, each with what is wrong with it.

    Args:
        rows: the job's rows by shard; empty if they are not known.
    """
    entries = [entry for stage in STAGES.values() for entry in ledger.parts(stage)]
    bad: set[str] = set()
    with (
        bars.rows("parts", len(entries), unit="parts") as advance,
        each(lambda entry, stop: _wrong(ledger, entry, rows), entries) as outcomes,
    ):
        for entry, wrong in zip(entries, outcomes, strict=True):
            advance(1)
            if wrong:
                bad.add(entry.part)
                yield entry, wrong
    with (
        bars.rows("scores", len(rows), unit="shards") as advance,
        each(lambda shard, stop: _twice(ledger, shard, rows[shard], bad, stop), rows) as found,
    ):
        for shard, twice in zip(rows, found, strict=True):
            advance(1)
            for entry, row in twice:
                yield entry, f"has row {row:,} of {shard}, which another part of scores has, too"


def surplus(ledger: Ledger, rows: int) -> Iterator[tuple[Stage, int]]:
    """Stages with more committed rows than a job of so many rows can have, each with its committed rows."""
    for stage in STAGES.values():
        tries = _TRIES.get(stage.name, 2) * (ledger.generation + 1)  # a retry may try each row again
        if ledger.rows(stage) > tries * rows:
            yield stage, ledger.rows(stage)


def _wrong(ledger: Ledger, entry: PartEntry, rows: Mapping[str, int]) -> str | None:
    """What is wrong with one part. It is in memory at once: a part is small."""
    try:
        data = ledger.part_path(entry).read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if len(data) != entry.bytes:
        return f"has {len(data):,} bytes; {entry.bytes:,} were committed"
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        return "has other contents than were committed (its SHA-256 differs)"
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            table = file.read(["shard", "row"], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"cannot be read as Parquet ({type(error).__name__})"
    if spans(table) != entry.spans:
        return "has other rows than the log says"
    if entry.stage == SCORES and table.group_by(["shard", "row"]).aggregate([]).num_rows < table.num_rows:
        return "has a row twice"
    beyond = next((name for name, span in entry.spans.items() if rows and span.high >= rows.get(name, 0)), "")
    return f"has rows of {beyond} that the job does not have" if beyond else None


def _twice(
    ledger: Ledger, shard: str, rows: int, leaving_out: Collection[str], stop: Stop
) -> list[tuple[PartEntry, int]]:
    """Parts of scores with a row of the shard that a part before them has, too, each with the first such
    row."""
    found = []
    for start in range(0, rows, _WINDOW_ROWS):
        end = min(start + _WINDOW_ROWS, rows)
        here = [e for e in ledger.overlapping(SCORES, shard, start, end) if e.part not in leaving_out]
        seen = np.zeros(end - start, bool)
        for entry in _meeting(here, shard):
            stop()
            numbers = _rows_of(ledger, entry, shard, start, end)
            if seen[numbers].any():
                found.append((entry, start + int(numbers[seen[numbers]].min())))
            seen[numbers] = True
    return found


def _meeting(entries: Sequence[PartEntry], shard: str) -> list[PartEntry]:
    """The parts whose span of the shard meets another one's. The rows of the others need not be read."""
    ordered = sorted(entries, key=lambda entry: entry.spans[shard].low)
    meeting: dict[str, PartEntry] = {}
    highest: PartEntry | None = None
    for entry in ordered:
        if highest and entry.spans[shard].low <= highest.spans[shard].high:
            meeting |= {highest.part: highest, entry.part: entry}
        if highest is None or entry.spans[shard].high > highest.spans[shard].high:
            highest = entry
    return list(meeting.values())


def _rows_of(ledger: Ledger, entry: PartEntry, shard: str, start: int, end: int) -> npt.NDArray[np.int64]:
    """A part's rows of a shard from `start` to before `end`, counted from `start`."""
    table = ledger.read(entry, ["shard", "row"])
    row = pc.field("row")
    wanted = table.filter((pc.field("shard") == shard) & (row >= start) & (row < end))
    return np.asarray(wanted["row"].to_numpy() - start, np.int64)
