"""Work units: slices of row groups, streamed from shards that must not have changed.

It knows where rows lie and how to read them, not what they are for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.corpus.shards import READ_ROWS, Shard, text_columns
from routelmt_batch.errors import InputChanged, RoutelmtError
from routelmt_batch.files.location import Replaced
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.files.write import sha256
from routelmt_batch.spec import Input, Texts
from routelmt_batch.threads import Stop

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


@dataclass(frozen=True)
class Lines:
    """Some rows of a unit: row numbers, texts and languages; references if they were requested."""

    rows: list[int]
    texts: list[str | None]
    source_langs: list[str | None]
    target_langs: list[str | None]
    references: list[str | None]


def read_lines(unit: Unit, spec: Input, also: Sequence[str] = ()) -> Iterator[Lines]:
    """Stream a unit's texts and languages in batches; with `also=("reference",)` its references too.

    Raises:
        InputChanged: the shard is not the file that was inspected.
    """
    columns = text_columns(spec, also)
    constants = {"source_lang": spec.source_lang, "target_lang": spec.target_lang}
    for first, batch in read_unit(unit, list(columns.values()), _LINES):

        def values(key: str, batch: pa.RecordBatch = batch) -> list[str | None]:
            if key not in columns:
                return [constants.get(key)] * batch.num_rows
            texts: list[str | None] = batch.column(columns[key]).to_pylist()
            return texts

        yield Lines(
            list(range(first, first + batch.num_rows)),
            *(values(key) for key in ("source", "source_lang", "target_lang", "reference")),
        )


def languages(batch: pa.RecordBatch | pa.Table, spec: Texts) -> tuple[pa.Array, pa.Array]:
    """Language codes of some rows, from columns or constants."""

    def codes(column: str, constant: str | None) -> pa.Array:
        if constant is not None:
            return pa.repeat(constant, batch.num_rows)
        return batch.column(column).cast(pa.string())

    return (
        codes(spec.columns.source_lang, spec.source_lang),
        codes(spec.columns.target_lang, spec.target_lang),
    )


def read_unit(
    unit: Unit, columns: list[str] | None = None, batch_rows: int | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Stream a unit's rows: each batch with the row number of its first row.

    Raises:
        InputChanged: the shard is not the file that was inspected.
        RoutelmtError: the shard is unchanged but cannot be read.
    """
    with _unchanged(unit.shard) as file:
        passed = unit.first_row - unit.offset
        for batch in file.iter_batches(batch_rows or READ_ROWS, row_groups=[unit.row_group], columns=columns):
            low, high = max(passed, unit.first_row), min(passed + batch.num_rows, unit.end_row)
            if low < high:
                yield low, batch.slice(low - passed, high - low)
            passed += batch.num_rows
            if passed >= unit.end_row:
                return


@contextlib.contextmanager
def _unchanged(shard: Shard) -> Iterator[pq.ParquetFile]:
    with contextlib.ExitStack() as stack:
        try:
            try:
                file = stack.enter_context(parquet_file(shard.location, shard.version))
            except (Replaced, FileNotFoundError):
                check_unchanged(shard)  # its contents may be the same
                file = stack.enter_context(parquet_file(shard.location))
            yield file
        except Replaced:
            raise changed(shard) from None
        except (pa.ArrowException, OSError) as error:
            check_unchanged(shard)
            raise RoutelmtError(
                f"{shard.name}: cannot be read at the moment: {error}. Nothing is lost: check the file "
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
        f"{shard.name}: the shard changed after it was first read. Restore the original file and run the "
        "same command again, or start a new job with another output folder"
    )
