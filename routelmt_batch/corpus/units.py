"""Work units: slices of row groups, streamed from shards that must not have changed.

It knows where rows lie and how to read them, not what they are for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.corpus.shards import READ_ROWS, Shard, is_text, text_columns
from routelmt_batch.errors import InputChanged, RoutelmtError
from routelmt_batch.files.location import Replaced
from routelmt_batch.files.parquet import batches, parquet_file
from routelmt_batch.files.write import sha256
from routelmt_batch.languages import understood
from routelmt_batch.names import one_line
from routelmt_batch.spec import Input, Texts
from routelmt_batch.threads import Stop

T = TypeVar("T")

UNIT_ROWS = 4 * READ_ROWS
_LINES = 1024  # rows held as Python objects at a time


@dataclass(frozen=True)
class Unit:
    """Rows of one row group that one task works on; `offset` counts the group's rows before them."""

    shard: Shard
    row_group: int
    first_row: int
    rows: int
    offset: int = 0

    @property
    def end_row(self) -> int:
        return self.first_row + self.rows


def units(shards: Iterable[Shard], limit: int | None = None, most_rows: int = UNIT_ROWS) -> Iterator[Unit]:
    """Work units in order, at most `limit` rows in all and `most_rows` in each.

    A task's memory is bounded by its unit, however large the corpus's row groups are.
    """
    left = limit if limit is not None else sys.maxsize
    for shard in shards:
        first = 0
        lean = replace(shard, row_groups=())  # units are sent to tasks, and there may be many row groups
        for group, group_rows in enumerate(shard.row_groups):
            rows = min(group_rows, left)
            for offset in range(0, rows, most_rows):
                yield Unit(lean, group, first + offset, min(most_rows, rows - offset), offset)
            left -= rows
            first += group_rows


def groups(items: Iterable[T], unit_of: Callable[[T], Unit]) -> Iterator[list[T]]:
    """Items in groups for tasks, in order: small units together, and those of one row group, which is then
    read once."""
    group: list[T] = []
    rows, last = 0, None
    for item in items:
        unit = unit_of(item)
        place = (unit.shard.name, unit.row_group)
        if group and rows + unit.rows > UNIT_ROWS and place != last:
            yield group
            group, rows = [], 0
        group.append(item)
        rows, last = rows + unit.rows, place
    if group:
        yield group


@dataclass(frozen=True)
class Lines:
    """Some rows of a unit: row numbers, texts and languages; each row's references if they were requested."""

    rows: list[int]
    texts: list[str | None]
    source_langs: list[str | None]
    target_langs: list[str | None]
    references: list[list[str]]


def read_lines(unit: Unit, spec: Input, also: Sequence[str] = ()) -> Iterator[Lines]:
    """Stream a unit's texts and languages in batches; with `also=("reference",)` its references too.

    Raises:
        InputChanged: the shard is not the file that was inspected.
    """
    columns = text_columns(spec, also)
    for first, batch in read_unit(unit, list(columns.values()), _LINES):
        texts: list[str | None] = batch.column(columns["source"]).to_pylist()
        found: list[list[str]] = [[] for _ in range(batch.num_rows)]
        if "reference" in columns:
            found = references(batch.column(columns["reference"]))
        source_langs, target_langs = (codes.to_pylist() for codes in languages(batch, spec))
        rows = list(range(first, first + batch.num_rows))
        yield Lines(rows, texts, source_langs, target_langs, found)


def references(column: pa.Array) -> list[list[str]]:
    """Each row's references, from a column of texts or of lists of texts. Null and blank ones do not count,
    and the same one counts once."""
    rows = column.to_pylist()
    if is_text(column.type):
        rows = [[text] for text in rows]
    return [list(dict.fromkeys(text for text in row or () if text and text.strip())) for row in rows]


def codes(batch: pa.RecordBatch | pa.Table, spec: Texts) -> tuple[pa.Array, pa.Array]:
    """Source and target language codes of some rows as they are written, from columns or constants."""

    def column(name: str, constant: str | None) -> pa.Array:
        if constant is not None:
            return pa.repeat(constant, batch.num_rows)
        found = batch.column(name).cast(pa.string())
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    return (
        column(spec.columns.source_lang, spec.source_lang),
        column(spec.columns.target_lang, spec.target_lang),
    )


def languages(batch: pa.RecordBatch | pa.Table, spec: Texts) -> tuple[pa.Array, pa.Array]:
    """Source and target languages of some rows: LMT's codes. A code that is not understood stays as it is."""
    source, target = codes(batch, spec)
    return _as_understood(source), _as_understood(target)


def _as_understood(codes: pa.Array) -> pa.Array:
    coded = codes.dictionary_encode()
    known = [code and (understood(code) or code) for code in coded.dictionary.to_pylist()]
    return pa.array(known, pa.string()).take(coded.indices)


def read_unit(
    unit: Unit, columns: list[str] | None = None, batch_rows: int | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Stream a unit's rows: each batch with the row number of its first row. A batch has fewer rows than
    `batch_rows` (16,384) if they are long.

    The next unit of the same row group, if it is the next that this thread reads, goes on from here: so a
    large row group is decoded once.

    Raises:
        InputChanged: the shard is not the file that was inspected.
        RoutelmtError: the shard is unchanged but cannot be read.
    """
    batch_rows = batch_rows or READ_ROWS
    scan: _Scan | None = getattr(_last, "scan", None)
    _last.scan = None
    if scan is None or not scan.leads_to(unit, columns, batch_rows):
        if scan:
            scan.close()
        scan = _Scan(unit, columns, batch_rows)
    try:
        yield from scan.read(unit)
    except BaseException:  # also if the caller needs no more rows
        scan.close()
        raise
    if scan.is_over:
        scan.close()
    else:
        _last.scan = scan


_last = threading.local()  # each thread's unfinished scan


class _Scan:
    """Reads one row group from its start, for one unit after the other."""

    def __init__(self, unit: Unit, columns: list[str] | None, batch_rows: int) -> None:
        self._key = (unit.shard, unit.row_group, columns, batch_rows)
        self._shard = unit.shard
        self._open = contextlib.ExitStack()
        with _explained(unit.shard):
            file = self._open.enter_context(_unchanged(unit.shard))
            self._rows: int = file.metadata.row_group(unit.row_group).num_rows
            self._batches = batches(file, unit.row_group, batch_rows, columns)
        self._left: pa.RecordBatch | None = None  # read and not given yet
        self._passed = 0  # rows of the group before `_left`

    def leads_to(self, unit: Unit, columns: list[str] | None, batch_rows: int) -> bool:
        same = self._key == (unit.shard, unit.row_group, columns, batch_rows)
        return same and self._passed <= unit.offset

    @property
    def is_over(self) -> bool:
        return self._passed >= self._rows

    def read(self, unit: Unit) -> Iterator[tuple[int, pa.RecordBatch]]:
        end = unit.offset + unit.rows
        while self._passed < end:
            batch, first = self._next(), self._passed
            low, high = max(unit.offset - first, 0), min(end - first, batch.num_rows)
            self._left = batch.slice(high) if high < batch.num_rows else None
            self._passed = first + high
            if low < high:
                yield unit.first_row - unit.offset + first + low, batch.slice(low, high - low)

    def _next(self) -> pa.RecordBatch:
        if self._left is not None:
            return self._left
        with _explained(self._shard):
            return next(self._batches)

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def _unchanged(shard: Shard) -> Iterator[pq.ParquetFile]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(parquet_file(shard.location, shard.version))
        except (Replaced, FileNotFoundError):
            check_unchanged(shard)  # its contents may be the same
            file = stack.enter_context(parquet_file(shard.location))
        yield file


@contextlib.contextmanager
def _explained(shard: Shard) -> Iterator[None]:
    try:
        yield
    except Replaced:
        raise changed(shard) from None
    except (pa.ArrowException, OSError) as error:
        check_unchanged(shard)
        raise RoutelmtError(
            f"{one_line(shard.name)}: cannot be read at the moment: {error}. Nothing is lost: check the file "
            "system and run the same command again"
        ) from error


def check_unchanged(shard: Shard, stop: Stop = lambda: None) -> None:
    """Raises InputChanged if a shard's content is not what was inspected."""
    stat = shard.location.stat()
    if stat is None or stat.bytes != shard.size_bytes:
        raise changed(shard)
    if shard.location.has_versions and stat.version == shard.version:
        return
    if sha256(shard.location, stop) != shard.sha256:
        raise changed(shard)


def changed(shard: Shard) -> InputChanged:
    return InputChanged(
        f"{one_line(shard.name)}: the shard changed after it was first read. Restore the original file and "
        "run the same command again, or start a new job with another output folder"
    )
