"""Input shards: discover them, fingerprint them, check that they fit the spec.

It knows files and rows, not what the rows are for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.atomic import sha256
from routelmt_batch.errors import InputError
from routelmt_batch.rows import OUTPUT_NAMES
from routelmt_batch.spec import Input, Texts, near
from routelmt_batch.threads import Stop, each

READ_ROWS = 16_384


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


def discover_all(uris: Sequence[str], only: str | None = None) -> list[tuple[str, Path]]:
    """Shards of one or several inputs. With several, names begin with the input's position: `0/`, `1/`.

    Raises:
        InputError: see discover.
    """
    if len(uris) == 1:
        return discover(uris[0], only)
    width = len(str(len(uris) - 1))
    found = [
        (f"{place:0{width}}/{name}", path) for place, uri in enumerate(uris) for name, path in discover(uri)
    ]
    return _only(found, only)


def discover(uri: str, only: str | None = None, key: str = "input.uri") -> list[tuple[str, Path]]:
    """(name, path) of every Parquet file of a folder, a glob or a single file, in name order.

    Names that begin with `.` or `_`, at any depth, are ignored, as in Spark and Ray Data.

    Raises:
        InputError: there are no shards, or `only` (a glob over names) matches none.
    """
    path = Path(uri)
    if path.is_dir():
        root, found = path, list(path.rglob("*.parquet"))
    elif path.is_file():
        root, found = path.parent, [path]
    elif any(mark in uri for mark in "*?["):
        root = Path(*_until_glob(path))
        found = list(root.glob(str(path.relative_to(root))))
    else:
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{key} {uri}: no such folder or file{near(path.name, beside)}")
    shards = []
    for file in found:
        name = file.relative_to(root)
        if not _is_utf8(str(name)):
            raise InputError(f"{str(name)!a}: the file's name is not UTF-8: rename it")
        if file.is_file() and not is_passed_over(name):
            shards.append((name.as_posix(), file))
    if not shards:
        raise InputError(f"{key} {uri}: no Parquet shards there (*.parquet, subfolders included)")
    return sorted(_only(shards, only), key=lambda shard: shard[0].encode())


def is_passed_over(name: Path) -> bool:
    """Whether a path below an input folder is not part of the input."""
    return any(part.startswith((".", "_")) for part in name.parts)


def _only(shards: list[tuple[str, Path]], only: str | None) -> list[tuple[str, Path]]:
    if only is None:
        return shards
    wanted = [(name, file) for name, file in shards if fnmatch.fnmatchcase(name, only)]
    if not wanted:
        names = [name for name, _ in shards]
        raise InputError(f"--shards {only}: matches none of {len(names)} shards{near(only, names)}")
    return wanted


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def alone(name: str) -> str:
    """The command-line option that selects only this shard, quoted for a shell."""
    return f"--shards {shlex.quote(glob.escape(name))}"


def _until_glob(path: Path) -> Iterator[str]:
    for part in path.parts:
        if any(mark in part for mark in "*?["):
            return
        yield part


def first_shards(found: list[tuple[str, Path]], limit: int) -> list[tuple[str, Path]]:
    """As many of the first shards as hold `limit` rows together, by their footers."""
    for count, (_, path) in enumerate(found, 1):
        with contextlib.suppress(pa.ArrowException, OSError):  # inspect reports unreadable files
            limit -= pq.read_metadata(path).num_rows
        if limit <= 0:
            return found[:count]
    return found


def inspect(
    found: list[tuple[str, Path]],
    spec: Input,
    known: Mapping[str, Shard] | None = None,
    advance: Callable[[int], None] = lambda shards: None,
    also: Sequence[str] = (),
    added: Sequence[str] = OUTPUT_NAMES,
) -> tuple[list[Shard], dict[str, str]]:
    """Read every shard completely: hash it, check its columns, and check that all its text decodes.

    So broken files are known before any model starts. A shard in `known` (by name) with the same size
    and modification time is not read again. `also` names spec keys of further text columns
    (`reference`), `added` the columns that the job adds and a shard must not have.

    Returns:
        The readable shards in name order, and by name why each other shard is unreadable.

    Raises:
        InputError: a shard lacks a needed column, has it with another type, or has an `added` column.
    """
    shards, unreadable = [], {}
    known = known or {}
    with each(
        lambda item, stop: _inspect(
            item[0], item[1], text_columns(spec, also), added, known.get(item[0]), stop
        ),
        found,
    ) as outcomes:
        for (name, _), outcome in zip(found, outcomes, strict=True):
            if isinstance(outcome, Shard):
                shards.append(outcome)
            else:
                unreadable[name] = outcome
            advance(1)
    return shards, unreadable


def _inspect(
    name: str, path: Path, texts: Mapping[str, str], added: Sequence[str], known: Shard | None, stop: Stop
) -> Shard | str:
    try:
        stat = path.stat()
        if known and (known.size_bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return replace(known, path=str(path))
        with pq.ParquetFile(path) as file:
            check_columns(name, file.schema_arrow, texts, added)
            rows = tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(READ_ROWS, row_groups=[group]):
                    stop()
                    for column in texts.values():
                        batch.column(column).validate(full=True)  # UTF-8, too
        digest = sha256(path, stop)
        return Shard(name, str(path), sum(rows), stat.st_size, digest, rows, stat.st_mtime_ns)
    except (pa.ArrowException, OSError) as error:
        return " ".join(str(error).split())[:300]


def text_columns(spec: Texts, also: Sequence[str] = ()) -> dict[str, str]:
    """The columns to read, by spec key: the text, languages that are not constants, and those in `also`."""
    languages = {"source_lang": spec.source_lang, "target_lang": spec.target_lang}
    keys = ["source", *(key for key, constant in languages.items() if constant is None), *also]
    return {key: getattr(spec.columns, key) for key in keys}


def check_columns(name: str, schema: pa.Schema, texts: Mapping[str, str], added: Sequence[str]) -> None:
    """Raises InputError if a shard's schema does not fit the spec."""
    for key, column in texts.items():
        if column not in schema.names:
            constant = f", or give a constant as input.{key}" if key.endswith("_lang") else ""
            raise InputError(
                f"{name}: no column {column!r} (input.columns.{key}){near(column, schema.names)}; "
                f"it has {', '.join(schema.names) or 'no columns'}. Name the right column{constant}"
            )
        kind = schema.field(column).type
        if not is_text(kind):
            raise InputError(
                f"{name}: column {column!r} (input.columns.{key}) is {kind}, not string: "
                "convert it, or name another column"
            )
    for column in schema.names:
        if column in added:
            raise InputError(
                f"{name}: has a column {column!r}, which is the name of an output column: rename it"
            )
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{name}: has columns with the same name: {', '.join(schema.names)}: rename them")


def is_text(kind: pa.DataType) -> bool:
    # pandas writes a column that holds only nulls as type null; it counts as text.
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )
