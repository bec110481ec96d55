"""Files on disks, written so that they survive a power cut and so that no late writer overwrites them.

They have no more permissions than their folder. A job's output folder is its owner's alone, unless it was
made before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from routelmt_batch.errors import DiskFull, OutputError, RoutelmtError
from routelmt_batch.failpoints import reach
from routelmt_batch.files.location import File, Location, Replaced, Stat

DRAFT = ".routelmt-tmp"
DRAFT_BYTES = len(f"..{uuid.UUID(int=0).hex}{DRAFT}")  # by which a draft's name is longer than its file's
_PATIENCE_S = 30.0
_PRIVATE = 0o700
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class DiskLocation(Location):
    """A path on a disk. Files are created with link(2), which fails if the name is taken."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> DiskLocation:
        return DiskLocation(self.path / name)

    @property
    def parent(self) -> DiskLocation:
        return DiskLocation(self.path.parent)

    @property
    def name(self) -> str:
        return self.path.name

    def relative_to(self, folder: Location) -> PurePosixPath:
        if not isinstance(folder, DiskLocation):
            raise ValueError(f"{self}: not below {folder}")
        return PurePosixPath(self.path.relative_to(folder.path))

    def canonical(self) -> DiskLocation:
        return DiskLocation(Path(os.path.realpath(self.path)))  # resolve() fails on a link to itself

    def stat(self) -> Stat | None:
        try:
            return _stat(self.path.stat()) if self.path.is_file() else None
        except FileNotFoundError:
            return None

    def is_folder(self) -> bool:
        return self.path.is_dir()

    def nearest(self) -> DiskLocation:
        above = (self.path, *self.canonical().path.parents)
        return DiskLocation(next(path for path in above if path.exists()))

    def make_private(self) -> None:
        if not self.path.is_dir():
            make_folder(self.path.parent)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(_PRIVATE)
            sync(self.path.parent)

    def below(self) -> Iterator[DiskLocation]:
        return (DiskLocation(path) for path in _below(self.path, ())) if self.path.is_dir() else iter(())

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def read_bytes(self) -> bytes:
        return self.path.read_bytes()

    def open(self, version: str | None = None) -> File:
        raw = io.FileIO(self.path, opener=_at_once)
        found = os.fstat(raw.fileno())
        if not stat.S_ISREG(found.st_mode):
            raw.close()
            raise OSError(errno.EINVAL, "not a file, but a pipe or a device", str(self.path))
        file = File(raw, _stat(found))
        if version is not None and file.stat.version != version:
            file.close()
            raise Replaced(f"{self}: changed since it was read")
        return file

    def create(self, data: bytes) -> None:
        with self.draft() as draft:
            draft.write_bytes(data)
            self.publish(draft, None)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        make_folder(self.path.parent)
        draft = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}{DRAFT}")
        try:
            yield draft
        except OSError as error:
            if error.errno in _FULL:
                raise _disk_full(self.path) from error
            raise
        finally:
            draft.unlink(missing_ok=True)

    def publish(self, draft: Path, over: Stat | None) -> Stat:
        follow_folder(draft)
        sync(draft)
        written = _stat(draft.stat())
        reach("disk.synced")
        if over is None:
            try:
                os.link(draft, self.path)
            except FileExistsError:
                raise Replaced(f"{self}: exists already") from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise OutputError(
                    f"{self.path.parent}: this file system has no hard links ({error.strerror}), and without "
                    "them two runs could overwrite each other's files. Give an output on another disk or in "
                    "an object store"
                ) from None
        else:
            with self._unchanged(over):
                draft.replace(self.path)
        reach("disk.named")
        sync(self.path.parent)
        return written

    def remove(self, only: Stat | None = None) -> None:
        if only is None:
            self.path.unlink(missing_ok=True)
            return
        with self._unchanged(only):
            self.path.unlink()
        sync(self.path.parent)

    @contextmanager
    def _unchanged(self, before: Stat) -> Iterator[None]:
        """Hold the file itself while it is compared and replaced, because a disk cannot do both at once.

        A process that is stopped in between keeps the others waiting, and overwrites nothing.
        """
        try:
            file = open(self.path, "r+b")  # noqa: SIM115
        except FileNotFoundError:
            raise Replaced(f"{self}: was removed since it was read") from None
        with file:
            _lock(file, self.path)
            now = self.stat()
            if now != before or now != _stat(os.fstat(file.fileno())):
                raise Replaced(f"{self}: changed since it was read")
            yield


def _below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Every file below a folder. Links are followed, and one that leads nowhere counts as a file.

    Raises:
        OSError: a folder cannot be listed, or a link leads back to a folder above it.
    """
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        raise OSError(errno.ELOOP, "it is a link to a folder above it", str(folder))
    with os.scandir(folder) as entries:
        inside = list(entries)
    for entry in inside:
        path = folder / entry.name
        if path.is_dir():
            yield from _below(path, (*above, here))
        elif path.is_file() or entry.is_symlink():
            yield path


def _at_once(path: str, flags: int) -> int:
    """Open a file. A pipe is opened, too, without waiting for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stat(found: os.stat_result) -> Stat:
    return Stat(found.st_size, f"{found.st_mtime_ns:x}", f"{found.st_ino:x}")


def _lock(file: BinaryIO, path: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise RoutelmtError(
                    f"{path}: another process has been replacing it for {_PATIENCE_S:.0f} seconds and seems "
                    "to be stopped. End that process, then run the same command again"
                ) from None
            time.sleep(0.05)
        except OSError:  # a file system without locks; what is left is the comparison
            return


def follow_folder(path: Path) -> None:
    """Give a file no more permissions than its folder has: 0600 in a folder that is its owner's alone."""
    if path.is_file():  # not /dev/null
        path.chmod(path.stat().st_mode & path.parent.stat().st_mode & 0o777)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably. A new one has no more permissions than the one above it."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, path in enumerate(missing) if path.is_dir()), len(missing))]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(path.parent.stat().st_mode & 0o777)
        sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drafts(folder: Path) -> Iterator[Path]:
    """The drafts that killed processes left below a folder."""
    return folder.rglob(f".*.{'[0-9a-f]' * 32}{DRAFT}")


def _disk_full(path: Path) -> DiskFull:
    return DiskFull(
        f"no space left on the disk of {path.parent}; nothing committed is lost. "
        "Free space and run the same command again"
    )
