"""Input shards: discover them, fingerprint them, check that they fit the spec.

It knows files and rows, not what the rows are for.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from routelmt_batch.corpus.tables import refuse_inside, refuse_part
from routelmt_batch.errors import InputError, StoreError
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.location import Location, Replaced
from routelmt_batch.files.parquet import batches, parquet_file, read_ahead
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import sha256_of
from routelmt_batch.names import one_line, quoted
from routelmt_batch.rows import OUTPUT_NAMES
from routelmt_batch.spec import Input, Texts, near
from routelmt_batch.threads import Each, Stop, each

READ_ROWS = 16_384


@dataclass(frozen=True)
class Shard:
    """One readable input shard. `name` is its path below the input root, with forward slashes."""

    name: str
    uri: str
    rows: int
    size_bytes: int
    sha256: str
    row_groups: tuple[int, ...]  # rows of each
    version: str = ""  # see files.location.Stat

    @property
    def location(self) -> Location:
        return locate(self.uri)

    def key(self) -> bytes:
        """Shards order by their name's UTF-8 bytes."""
        return self.name.encode()


def pins(uris: Sequence[str], before: Mapping[str, str]) -> dict[str, str]:
    """By the URI of each input that is a branch or tag of a hub: its URI at a commit, which stays that of
    `before`.

    Raises:
        UsageError: there is no such dataset or revision.
    """
    found = {uri: locate(before.get(uri, uri)).pinned() for uri in uris}
    return {uri: str(pinned) for uri, pinned in found.items() if pinned != locate(uri)}


def discover_all(uris: Sequence[str], only: str | None = None) -> list[tuple[str, Location]]:
    """Shards of one or several inputs. With several, names begin with the input's position: `0/`, `1/`.

    Raises:
        InputError: see discover.
    """
    if len(uris) == 1:
        return discover(uris[0], only)
    width = len(str(len(uris) - 1))
    found = [
        (f"{place:0{width}}/{name}", file) for place, uri in enumerate(uris) for name, file in discover(uri)
    ]
    return _once(_only(found, only))


def discover(uri: str, only: str | None = None, key: str = "input.uri") -> list[tuple[str, Location]]:
    """(name, location) of every Parquet file of a folder, a glob or a single file, in name order. Links are
    followed.

    Names that begin with `.` or `_`, at any depth, are ignored, as in Spark and Ray Data.

    Raises:
        InputError: there are no shards, or `only` (a glob over names) matches none; a folder cannot be
            listed; files belong to a table of another format; one file is found twice, by links.
    """
    location = locate(uri).pinned()
    try:
        shards = [
            (str(name), file)
            for name, file in _files(location, uri, key)
            if not is_passed_over(name) and _is_utf8(name)
        ]
    except OSError as error:
        raise InputError(
            f"{key} {uri}: {error.filename} cannot be read ({error.strerror}), so its shards are not known. "
            f"Change its permissions or the link, or give an {key} without it"
        ) from None
    if not shards:
        raise InputError(f"{key} {uri}: no Parquet shards there (*.parquet, subfolders included)")
    return sorted(_once(_only(shards, only)), key=lambda shard: shard[0].encode())


def _files(location: Location, uri: str, key: str) -> Iterator[tuple[PurePosixPath, Location]]:
    """Every Parquet file of a folder, of a glob or the one file, each with its path below the input root."""
    if location.exists():
        yield PurePosixPath(location.name), location
        return
    root, pattern = rule(location)
    if root == location and not location.is_folder():
        raise InputError(f"{key} {uri}: no such folder or file{near(location.name, _beside(location))}")
    refuse_inside(root, uri, key)
    for file in root.below():
        name = file.relative_to(root)
        refuse_part(name, uri, key)
        if pattern.match(str(name)):
            yield name, file
        elif not name.suffix and not is_passed_over(name) and _leads_nowhere(file):
            raise FileNotFoundError(errno.ENOENT, "it is a link that leads nowhere", str(file))


def _leads_nowhere(file: Location) -> bool:
    """Whether this is a link to what is not there, perhaps to a folder of shards."""
    return isinstance(file, DiskLocation) and not file.path.exists()


def rule(location: Location) -> tuple[Location, re.Pattern[str]]:
    """The folder that a folder's or a glob's shards are below, and the pattern of their paths below it."""
    root = _until_glob(location)
    glob_of = location.relative_to(root)
    return root, re.compile(glob_translate(str(glob_of)) if glob_of.parts else r"(?s:.*\.parquet)\Z")


def _once(shards: list[tuple[str, Location]]) -> list[tuple[str, Location]]:
    """Raises InputError if two shards are one file: its rows would be translated twice."""
    names: dict[str, str] = {}
    for name, file in shards:
        first = names.setdefault(str(file.canonical()), name)
        if first != name:
            raise InputError(
                f"{name}: is the same file as {first}, and its rows would be translated twice. Give each "
                "input once, and leave out links to files of the input"
            )
    return shards


def _beside(location: Location) -> list[str]:
    """Names beside a location, for a hint; none if a store does not allow to list them."""
    with contextlib.suppress(StoreError):
        return location.parent.names()
    return []


def _until_glob(location: Location) -> Location:
    """The folder above a location's first name with a wildcard; the location itself if it has none. A folder
    that has the very name, such as `[x]`, is taken for itself."""
    places = [location]
    while places[-1].name:
        places.append(places[-1].parent)
    for place in reversed(places):
        if any(mark in place.name for mark in "*?[") and not place.is_folder():
            return place.parent
    return location


def is_passed_over(name: PurePath) -> bool:
    """Whether a path below an input folder is not part of the input."""
    return any(part.startswith((".", "_")) for part in name.parts)


def _only(shards: list[tuple[str, Location]], only: str | None) -> list[tuple[str, Location]]:
    if only is None:
        return shards
    wanted = [(name, file) for name, file in shards if fnmatch.fnmatchcase(name, only)]
    if not wanted:
        names = [name for name, _ in shards]
        raise InputError(f"--shards {only}: matches none of {len(names)} shards{near(only, names)}")
    return wanted


def _is_utf8(name: PurePath) -> bool:
    """Raises InputError if a name is not UTF-8."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        raise InputError(f"{str(name)!a}: the file's name is not UTF-8: rename it") from None
    return True


def alone(name: str) -> str:
    """The command-line option that selects only this shard, quoted for a shell."""
    return f"--shards {quoted(glob.escape(name))}"


def first_shards(found: list[tuple[str, Location]], limit: int) -> list[tuple[str, Location]]:
    """As many of the first shards as hold `limit` rows together, by their footers."""
    for count, (_, location) in enumerate(found, 1):
        # inspect reports unreadable files
        with contextlib.suppress(pa.ArrowException, OSError), parquet_file(location) as file:
            limit -= file.metadata.num_rows
        if limit <= 0:
            return found[:count]
    return found


def inspect(
    found: list[tuple[str, Location]],
    spec: Input,
    known: Mapping[str, Shard] | None = None,
    advance: Callable[[int], None] = lambda shards: None,
    also: Sequence[str] = (),
    added: Sequence[str] = OUTPUT_NAMES,
    spread: Each = each,
) -> tuple[list[Shard], dict[str, str]]:
    """Read every shard completely: hash it, check its columns, and check that all its text decodes.

    So broken files are known before any model starts. A shard in `known` (by name) with the same size
    and version is not read again.

    Args:
        also: spec keys of further text columns (`reference`).
        added: the columns that the job adds and a shard must not have.
        spread: reads the shards; by default in this process's threads.

    Returns:
        The readable shards in name order, and by name why each other shard is unreadable.

    Raises:
        InputError: a shard lacks a needed column, has it with another type, or has an `added` column.
    """
    shards, unreadable = [], {}
    known = known or {}
    looks = (_Look(name, location, known.get(name)) for name, location in found)
    with spread(_Inspector(text_columns(spec, also), added), looks) as outcomes:
        for (name, _), outcome in zip(found, outcomes, strict=True):
            if isinstance(outcome, Shard):
                shards.append(outcome)
            else:
                unreadable[name] = outcome
            advance(1)
    return shards, unreadable


class _Look(NamedTuple):
    """A shard to inspect, and what an earlier run found in it."""

    name: str
    location: Location
    known: Shard | None


@dataclass(frozen=True)
class _Inspector:
    """Inspects one shard, in a task: returns it, or why it is unreadable."""

    texts: Mapping[str, str]
    added: Sequence[str]

    def __call__(self, look: _Look, stop: Stop) -> Shard | str:
        name, location, known = look
        try:
            if known and (stat := location.stat()) and (known.size_bytes, known.version) == stat[:2]:
                return replace(known, uri=str(location))
            with location.open() as source:
                digest = sha256_of(source, stop)
                source.seek(0)
                file = read_ahead(source)
                check_columns(name, file.schema_arrow, self.texts, self.added)
                rows = self._decode(file, stop)
                size, version, _ = source.stat
            return Shard(name, str(location), sum(rows), size, digest, rows, version)
        except Replaced as error:
            return str(error)
        except UnicodeDecodeError:
            return "the name of a column is not UTF-8"
        except (pa.ArrowException, OSError) as error:
            return " ".join(str(getattr(error, "strerror", None) or error).split())[:300]

    def _decode(self, file: pq.ParquetFile, stop: Stop) -> tuple[int, ...]:
        """Check that all text decodes; the rows of each row group."""
        for group in range(file.num_row_groups):
            for batch in batches(file, group, READ_ROWS):
                stop()
                for column in self.texts.values():
                    batch.column(column).validate(full=True)  # UTF-8, too
        return tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))


def text_columns(spec: Texts, also: Sequence[str] = ()) -> dict[str, str]:
    """The columns to read, by spec key: the text, languages that are not constants, and those in `also`."""
    languages = {"source_lang": spec.source_lang, "target_lang": spec.target_lang}
    keys = ["source", *(key for key, constant in languages.items() if constant is None), *also]
    return {key: getattr(spec.columns, key) for key in keys}


def check_columns(name: str, schema: pa.Schema, texts: Mapping[str, str], added: Sequence[str]) -> None:
    """Raises InputError if a shard's schema does not fit the spec."""
    name = one_line(name)
    for key, column in texts.items():
        if column not in schema.names:
            constant = f", or give a constant as input.{key}" if key.endswith("_lang") else ""
            raise InputError(
                f"{name}: no column {column!r} (input.columns.{key}){near(column, schema.names)}; "
                f"it has {', '.join(schema.names) or 'no columns'}. Name the right column{constant}"
            )
        kind = schema.field(column).type
        if not (is_references(kind) if key == "reference" else is_text(kind)):
            wanted = "string or a list of strings" if key == "reference" else "string"
            raise InputError(
                f"{name}: column {column!r} (input.columns.{key}) is {kind}, not {wanted}: "
                "convert it, or name another column"
            )
    for column in schema.names:
        if column in added:
            raise InputError(
                f"{name}: has a column {column!r}, which is the name of an output column: rename it"
            )
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{name}: has columns with the same name: {', '.join(schema.names)}: rename them")


def is_references(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold references: one for each row, or a list."""
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_text(kind) or (is_list and is_text(kind.value_type))


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
