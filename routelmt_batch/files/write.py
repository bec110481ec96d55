"""Whole files, written durably and read back. It knows no rows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.errors import RoutelmtError
from routelmt_batch.failpoints import reach
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.location import Location, Replaced, Stat

_HASH_BYTES = 1 << 20
Check = Callable[[], None]


def _may() -> None:
    pass


def write_file(
    where: Location | Path,
    write: Callable[[Path], object],
    verify: Callable[[Path], None],
    failpoint: str,
    check: Check = _may,
) -> Stat:
    """Write a file whole: draft it on a disk, verify the draft, and give it its name.

    A file that is there now is replaced, if it is still the same then. `failpoint` is the prefix of the
    failpoints' names.

    Args:
        check: raises if this process may not write (any more). It is called after what is there was read, so
            that nothing that another process writes from then on is replaced.

    Returns:
        The written file.

    Raises:
        Replaced: another process wrote it meanwhile.
        DiskFull: no space was left; the draft is removed.
    """
    location = where if isinstance(where, Location) else DiskLocation(where)
    try:
        with location.draft() as draft:
            reach(f"{failpoint}.write")
            write(draft)
            verify(draft)
            reach(f"{failpoint}.publish.before")
            written = _publish(location, draft, check, failpoint)
            reach(f"{failpoint}.publish.after")
            return written
    except (Replaced, FileNotFoundError):
        check()  # a run that took the job over removes the drafts of the one before, and replaces its files
        raise


def _publish(location: Location, draft: Path, check: Check, failpoint: str) -> Stat:
    try:
        return location.publish(draft, None)  # most files are new
    except Replaced:
        over = location.stat()
        check()
        reach(f"{failpoint}.replace.before")
        return location.publish(draft, over)


@contextmanager
def kept_folder(where: Location) -> Iterator[Path]:
    """A folder on a disk for files that grow, such as logs; the first file makes it. A store gets copies of
    them at the end."""
    if isinstance(where, DiskLocation):
        yield where.path
        return
    with tempfile.TemporaryDirectory(prefix="routelmt-") as name:
        folder = Path(name)
        try:
            yield folder
        finally:
            for path in folder.rglob("*"):
                if path.is_file():
                    # Logs that cannot be kept must not hide how the job ended.
                    copy = where / path.relative_to(folder).as_posix()
                    with contextlib.suppress(RoutelmtError, OSError):
                        write_file(copy, partial(shutil.copyfile, path), lambda draft: None, "log")


def remove_folder(folder: Location) -> None:
    """Remove a folder with all files in it, if it exists."""
    if isinstance(folder, DiskLocation):
        if folder.path.is_dir():
            shutil.rmtree(folder.path)
        return
    for file in folder.below():
        file.remove()


def write_parquet(where: Location | Path, table: pa.Table, failpoint: str) -> tuple[int, str]:
    """Write a whole table, read its row count back, and return the file's bytes and SHA-256."""
    written = []

    def verify(draft: Path) -> None:
        rows = pq.read_metadata(draft).num_rows
        if rows != table.num_rows:
            raise OSError(errno.EIO, f"{where}: only {rows} of {table.num_rows} rows could be read back")
        written.append((draft.stat().st_size, sha256_at(draft)))

    write_file(where, lambda draft: pq.write_table(table, draft, compression="zstd"), verify, failpoint)
    return written[0]


def write_json(where: Location | Path, value: Any, failpoint: str, check: Check = _may) -> None:
    """Write a value as JSON; NaN and infinities, which JSON cannot represent, become null."""
    write_text(where, json_text(value), failpoint, check)


def json_text(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A copy of a value in which NaN and infinities are None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(where: Location | Path, text: str, failpoint: str, check: Check = _may) -> None:
    def write(draft: Path) -> None:
        draft.write_text(text, encoding="utf8")

    write_file(where, write, lambda draft: None, failpoint, check=check)


def sha256(location: Location, stop: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file's contents; `stop` is called before each block and may raise."""
    with location.open() as file:
        return sha256_of(file, stop)


def sha256_of(file: IO[bytes], stop: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(_HASH_BYTES):
        stop()
        digest.update(chunk)
    return digest.hexdigest()


def sha256_at(path: Path) -> str:
    """SHA-256 of a file on a disk."""
    return sha256(DiskLocation(path))
