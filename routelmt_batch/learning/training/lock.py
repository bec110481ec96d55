"""The lock on a training's folder, which is on a disk: one process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from routelmt_batch.errors import OutputError


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder. The lock ends with the process.

    Raises:
        OutputError: another process holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds rows of the tables
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise OutputError(
            f"{folder.parent}: another training holds this folder; let it end, or give another --output"
        ) from None
