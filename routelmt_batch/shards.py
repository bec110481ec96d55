"""Parquet shards and parts: discover, fingerprint, read by row group, write atomically.

It knows files and rows, not what the rows are for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.errors import InputChanged, InputError
from routelmt_batch.rows import OUTPUT_NAMES
from routelmt_batch.spec import Input, near

_READ_ROWS = 16_384
UNIT_ROWS = 4 * _READ_ROWS
_HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Shard:
    """One readable input shard. `name` is its path below the input root, with forward slashes."""

    name: str
    path: str
    rows: int
    size_bytes: int
    sha256: str
    row_groups: tuple[int, ...]  # rows of each
    mtime_ns: int = 0

    def key(self) -> bytes:
        """Shards order by their name's UTF-8 bytes."""
        return self.name.encode()


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


def discover(uri: str, only: str | None = None) -> list[tuple[str, Path]]:
    """(name, path) of every Parquet file of a folder, a glob or a single file, in name order.

    Names that begin with `.` or `_`, at any depth, are passed over, as Spark and Ray Data do.

    Raises:
        InputError: nothing is there, or `only` (a glob over names) matches nothing.
    """
    if "://" in uri:
        raise InputError(f"input.uri {uri}: only paths are read here; mount the store or copy the shards")
    path = Path(uri)
    if path.is_dir():
        root, found = path, list(path.rglob("*.parquet"))
    elif path.is_file():
        root, found = path.parent, [path]
    elif any(mark in uri for mark in "*?["):
        root = Path(*_until_glob(path))
        found = list(root.glob(str(path.relative_to(root))))
    else:
        raise InputError(f"input.uri {uri}: no such folder or file")
    shards = []
    for file in found:
        name = file.relative_to(root)
        if file.is_file() and not any(part.startswith((".", "_")) for part in name.parts):
            shards.append((name.as_posix(), file))
    if not shards:
        raise InputError(f"input.uri {uri}: no Parquet shards there (*.parquet, folders included)")
    if only is not None:
        names = [name for name, _ in shards]
        shards = [(name, file) for name, file in shards if fnmatch.fnmatchcase(name, only)]
        if not shards:
            raise InputError(f"--shards {only}: matches none of {len(names)} shards{near(only, names)}")
    return sorted(shards, key=lambda shard: shard[0].encode())


def _until_glob(path: Path) -> Iterator[str]:
    for part in path.parts:
        if any(mark in part for mark in "*?["):
            return
        yield part


def first_shards(found: list[tuple[str, Path]], limit: int) -> list[tuple[str, Path]]:
    """The first shards that hold `limit` rows between them, by their footers."""
    for count, (_, path) in enumerate(found, 1):
        with contextlib.suppress(pa.ArrowException, OSError):  # inspect names what cannot be read
            limit -= pq.read_metadata(path).num_rows
        if limit <= 0:
            return found[:count]
    return found


def inspect(found: list[tuple[str, Path]], spec: Input) -> tuple[list[Shard], dict[str, str]]:
    """Read every shard once, whole: its hash, its columns, and that every page decodes.

    A broken file is then known before any model starts.

    Returns:
        The readable shards in name order, and the reason of each unreadable one by name.

    Raises:
        InputError: a shard lacks a needed column, has it with another type, or has one of ours.
    """
    with ThreadPoolExecutor() as pool:
        outcomes = pool.map(lambda item: _inspect(item[0], item[1], spec), found)
    shards, unreadable = [], {}
    for (name, _), outcome in zip(found, outcomes, strict=True):
        if isinstance(outcome, Shard):
            shards.append(outcome)
        else:
            unreadable[name] = outcome
    return shards, unreadable


def _inspect(name: str, path: Path, spec: Input) -> Shard | str:
    try:
        before = path.stat()
        with pq.ParquetFile(path) as file:
            check_columns(name, file.schema_arrow, spec)
            rows = tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            for group in range(file.num_row_groups):
                for _ in file.iter_batches(_READ_ROWS, row_groups=[group]):
                    pass
        return Shard(name, str(path), sum(rows), before.st_size, sha256(path), rows, before.st_mtime_ns)
    except (pa.ArrowException, OSError) as error:
        return " ".join(str(error).split())[:300]


def check_columns(name: str, schema: pa.Schema, spec: Input) -> None:
    """Raises InputError if a shard's schema does not fit the spec."""
    columns = spec.columns
    for key, constant in (
        ("source", None),
        ("source_lang", spec.source_lang),
        ("target_lang", spec.target_lang),
    ):
        column = getattr(columns, key)
        if constant is not None:
            continue
        if column not in schema.names:
            also = "" if key == "source" else f", or give a constant as input.{key}"
            raise InputError(
                f"{name}: no column {column!r} (input.columns.{key}){near(column, schema.names)}; "
                f"it has {', '.join(schema.names) or 'no columns'}. Name the right one{also}"
            )
        kind = schema.field(column).type
        if not is_text(kind):
            raise InputError(f"{name}: column {column!r} (input.columns.{key}) is {kind}, not string")
    for column in schema.names:
        if column in OUTPUT_NAMES:
            raise InputError(
                f"{name}: has a column {column!r}, which is the name of an output column: rename it"
            )
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{name}: has two columns of one name: {', '.join(schema.names)}")


def is_text(kind: pa.DataType) -> bool:
    # A column of nulls alone is written as type null by pandas; it is text without any text.
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def units(shards: Iterable[Shard], limit: int | None = None, most_rows: int = UNIT_ROWS) -> Iterator[Unit]:
    """Work units in order, at most `limit` rows in all and `most_rows` in each.

    A task's memory is bounded by its unit, however large the corpus's row groups are.
    """
    left = limit if limit is not None else sys.maxsize
    for shard in shards:
        first = 0
        for group, group_rows in enumerate(shard.row_groups):
            rows = min(group_rows, left)
            for offset in range(0, rows, most_rows):
                yield Unit(shard, group, first + offset, min(most_rows, rows - offset), offset)
            left -= rows
            first += group_rows


@dataclass(frozen=True)
class Lines:
    """Some rows of a unit: row numbers, texts and languages, as Arrow and Python hold them."""

    rows: list[int]
    texts: list[str | None]
    source_langs: list[str | None]
    target_langs: list[str | None]


def read_lines(unit: Unit, spec: Input) -> Iterator[Lines]:
    """Stream a unit's text and languages in batches.

    Raises:
        InputChanged: the shard is not the file that was inspected.
    """
    columns = spec.columns
    constants = {columns.source_lang: spec.source_lang, columns.target_lang: spec.target_lang}
    wanted = [columns.source] + [name for name, constant in constants.items() if constant is None]
    for first, batch in read_unit(unit, wanted):

        def values(name: str, batch: pa.RecordBatch = batch) -> list[str | None]:
            constant = constants.get(name)
            if constant is not None:
                return [constant] * batch.num_rows
            texts: list[str | None] = batch.column(name).to_pylist()
            return texts

        yield Lines(
            list(range(first, first + batch.num_rows)),
            values(columns.source),
            values(columns.source_lang),
            values(columns.target_lang),
        )


def read_unit(unit: Unit, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Stream a unit's rows: each batch with the row number of its first row.

    Raises:
        InputChanged: the shard is not the file that was inspected.
    """
    with _unchanged(unit.shard) as file:
        passed = unit.first_row - unit.offset
        for batch in file.iter_batches(_READ_ROWS, row_groups=[unit.row_group], columns=columns):
            low, high = max(passed, unit.first_row), min(passed + batch.num_rows, unit.end_row)
            if low < high:
                yield low, batch.slice(low - passed, high - low)
            passed += batch.num_rows
            if passed >= unit.end_row:
                return


@contextlib.contextmanager
def _unchanged(shard: Shard) -> Iterator[pq.ParquetFile]:
    try:
        stat = Path(shard.path).stat()
        if (stat.st_size, stat.st_mtime_ns) != (shard.size_bytes, shard.mtime_ns):
            raise changed(shard)
        with pq.ParquetFile(shard.path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise changed(shard) from error


def changed(shard: Shard) -> InputChanged:
    return InputChanged(
        f"{shard.name}: the shard changed after it was scored. Put the scored file back and run the "
        "same command again, or start a new job with another --output"
    )


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
