"""Atomic file writes: a temporary file is written, synced, verified and renamed. It knows no rows."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.errors import DiskFull
from routelmt_batch.failpoints import reach

_HASH_BYTES = 1 << 20
_TEMPORARY = ".routelmt-tmp"


def write_atomically(
    path: Path, write: Callable[[Path], None], verify: Callable[[Path], None], failpoint: str
) -> None:
    """Write to a temporary name, fsync, verify by reading back, rename, fsync the folder.

    At every moment `path` is complete or absent. `failpoint` is the prefix of the failpoints' names.

    Raises:
        DiskFull: no space was left; the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        reach(f"{failpoint}.write")
        write(temporary)
        reach(f"{failpoint}.fsync.before")
        _fsync(temporary)
        reach(f"{failpoint}.fsync.after")
        verify(temporary)
        reach(f"{failpoint}.rename.before")
        temporary.replace(path)
        reach(f"{failpoint}.rename.after")
        _fsync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove the half-written files that a killed process left below a folder."""
    for path in folder.rglob(f".*.{'[0-9a-f]' * 32}{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def disk_full(path: Path) -> DiskFull:
    return DiskFull(
        f"no space left on the disk of {path.parent}; nothing committed is lost. "
        "Free space and run the same command again"
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_parquet(path: Path, table: pa.Table, failpoint: str) -> None:
    """Write a whole table atomically and read its row count back."""

    def verify(written: Path) -> None:
        rows = pq.read_metadata(written).num_rows
        if rows != table.num_rows:
            raise OSError(errno.EIO, f"{path}: only {rows} of {table.num_rows} rows could be read back")

    write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"), verify, failpoint)


def write_json(path: Path, value: Any, failpoint: str) -> None:
    """Write a value as JSON; NaN and infinities, which JSON cannot represent, become null."""
    text = json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False)
    write_text(path, text + "\n", failpoint)


def plain(value: Any) -> Any:
    """A copy of a value in which NaN and infinities are None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str, failpoint: str) -> None:
    def write(file: Path) -> None:
        file.write_text(text, encoding="utf8")

    write_atomically(path, write, lambda file: None, failpoint)


def sha256(path: str | Path, stop: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file's contents; `stop` is called before each block and may raise."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_BYTES):
            stop()
            digest.update(chunk)
    return digest.hexdigest()
