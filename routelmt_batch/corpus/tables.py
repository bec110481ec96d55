"""Tables of Delta and Iceberg: their Parquet files alone are not the table, so they are refused.

Some of the files hold rows that were removed or replaced, and partition columns are in no file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import PurePath

from routelmt_batch.errors import InputError
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.location import Location

_WAYS_OUT = {
    "Delta": "`pyarrow.dataset.write_dataset(deltalake.DeltaTable(TABLE).to_pyarrow_dataset(), FOLDER, "
    'format="parquet")` in Python',
    "Iceberg": "`pyarrow.parquet.write_table(table.scan().to_arrow(), FILE)` in Python, with pyiceberg",
}


def refuse_part(name: PurePath, uri: str, key: str) -> None:
    """Raises InputError if a file below an input belongs to a table's metadata."""
    if kind := _kind(name):
        raise _refused(kind, f"{key} {uri}", str(name.parent))


def refuse_inside(location: Location, uri: str, key: str) -> None:
    """Raises InputError if an input on a disk lies inside a table, as a partition does. In a store a
    role may list the input alone."""
    if isinstance(location, DiskLocation):
        with contextlib.suppress(OSError):
            for folder, kind in _above(location):
                raise _refused(kind, f"{key} {uri}", str(folder))


def _kind(name: PurePath) -> str | None:
    if "_delta_log" in name.parts:
        return "Delta"
    is_iceberg = name.parent.name == "metadata" and name.name.endswith(".metadata.json")
    return "Iceberg" if is_iceberg else None


def _above(location: Location) -> Iterator[tuple[Location, str]]:
    """The folders above a location that are tables."""
    folder = location
    while folder.name:
        folder = folder.parent
        for inside in ("_delta_log", "metadata"):
            for name in (folder / inside).names():
                if kind := _kind(PurePath(inside, name)):
                    yield folder, kind


def _refused(kind: str, given: str, where: str) -> InputError:
    return InputError(
        f"{given}: {where} belongs to a table of {kind}. Its Parquet files alone are not the table: some "
        "hold rows that were removed or replaced, and partition columns are in none. Write the rows that you "
        f"want to plain Parquet files, with {_WAYS_OUT[kind]}, and give those as {given.split()[0]}"
    )
