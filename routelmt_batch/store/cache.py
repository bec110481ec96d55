"""Models of object stores, fetched to a cache on this node's disk: once, by one process, with checked hashes.

A copy is a folder of one version of a model, named by the ETags of its objects. Beside it, a record holds the
SHA-256 of every file as it was fetched, with the file's size and time of change. A file that differs from its
record is fetched again, so a copy that was cut off or damaged is repaired.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from routelmt_batch import fetched
from routelmt_batch.errors import DiskFull, ModelError, StoreError, UsageError
from routelmt_batch.fetched import Copy
from routelmt_batch.files.bucket import ObjectLocation
from routelmt_batch.files.disk import drafts
from routelmt_batch.files.location import Replaced
from routelmt_batch.files.record import Record
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import sha256_at
from routelmt_batch.progress import Bars
from routelmt_batch.spec import near
from routelmt_batch.threads import Stop, each

VARIABLE = "ROUTELMT_CACHE"
_DEFAULT = "~/.cache/routelmt_batch"
_RANGE_BYTES = 16 << 20
_TRIES = 3  # of a model that is replaced in its store while it is fetched


class _Object(NamedTuple):
    """An object of a model, as its store shows it."""

    location: ObjectLocation
    bytes: int
    etag: str


class _File(Record):
    """A fetched file."""

    bytes: int
    changed_ns: int
    sha256: str


class _Files(Record):
    """The record of a copy: its files by their path in the folder."""

    uri: str
    files: dict[str, _File]


def folder() -> Path:
    """The cache's folder on this node: ROUTELMT_CACHE, or one in the user's own cache."""
    return Path(os.environ.get(VARIABLE) or _DEFAULT).expanduser().absolute()


def fetch(
    uri: str,
    key: str = "model",
    needs: str | None = None,
    expected: str | None = None,
    bars: Bars | None = None,
) -> Copy:
    """Copy a model's objects to this node's disk, unless they are there, and add the copy to `fetched`.

    A process uses one version of a model until it ends. Of several processes one fetches while the others
    wait. Objects in folders whose names begin with `_` are left out: `train` and `calibrate` work there.

    Args:
        uri: the model's folder.
        key: what names the model, for messages.
        needs: a file of the model. Without it nothing is fetched: the URI may be that of a whole bucket.
        expected: the copy's SHA-256 that the job began with.

    Raises:
        ModelError: there is nothing, the file `needs` is missing, or it is not what the job began with.
        DiskFull: the cache's disk has no room for it.
        UsageError: the cache's folder cannot be written.
        StoreError: the store denies access or does not answer.
    """
    uri = uri.rstrip("/")
    copy = fetched.copies(uri).get(uri)
    if copy is None:
        copy = _fetched(uri, key, needs, bars or Bars.none())
        fetched.add({uri: copy})
    if expected not in (None, copy.sha256):
        raise ModelError(
            f"{uri}: on node {socket.gethostname()} it has the SHA-256 {copy.sha256[:12]}, but the job began "
            f"with {str(expected)[:12]}. It was replaced in its store meanwhile: put the former version "
            "back, or start a new job with another --output"
        )
    return copy


def bring(models: Mapping[str, Copy]) -> None:
    """Have on this node the models that the driver has: copies from stores, and commits on the hub.

    Raises:
        RoutelmtError: see fetch.
    """
    for source, seen in models.items():
        if seen.commit:
            fetched.add({source: seen})
        else:
            fetch(source, expected=seen.sha256)


def _fetched(uri: str, key: str, needs: str | None, bars: Bars) -> Copy:
    for tries_left in reversed(range(_TRIES)):
        objects = _objects(uri, key)
        if needs and needs not in objects:
            raise ModelError(f"{key} {uri}: no {needs} there; give the folder of a model")
        try:
            return _copy(uri, objects, bars)
        except Replaced as error:
            if not tries_left:
                raise StoreError(
                    f"{key} {uri}: changes while it is fetched ({error}). Let its upload end, then run the "
                    "same command again"
                ) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(uri, sum(found.bytes for found in objects.values())) from None
            raise UsageError(
                f"{VARIABLE}: models are fetched to {folder()} on {socket.gethostname()}, which cannot be "
                f"written ({error.strerror or error}). Set {VARIABLE} to a folder that can"
            ) from None
    raise AssertionError("unreachable")


def _objects(uri: str, key: str) -> dict[str, _Object]:
    """The objects of a model, by their path below its folder."""
    source = locate(uri)
    if not isinstance(source, ObjectLocation):
        raise ModelError(
            f"{key} {uri}: not a model's URI: give a folder, s3://, gs:// or az://, or a model of the hub by "
            "its name (OWNER/NAME)"
        )
    found: dict[str, _Object] = {}
    for location in source.below():
        name = location.relative_to(source).as_posix()
        stat = None if name == "." or name.startswith("_") else location.stat()
        if stat:
            found[name] = _Object(location, stat.bytes, stat.version)
    for name in list(found):  # some tools write an empty object for each folder
        if any(other.startswith(f"{name}/") for other in found):
            del found[name]
    if not found:
        beside: list[str] = []
        with contextlib.suppress(StoreError):  # the role may list the model's folder only
            beside = source.parent.names()
        raise ModelError(
            f"{key} {uri}: its bucket has no objects below this name: check the URI"
            f"{near(source.name, beside)}"
        )
    return found


def _copy(uri: str, objects: dict[str, _Object], bars: Bars) -> Copy:
    """Bring the copy of one version up to its objects."""
    version = hashlib.sha256(f"{uri}\n".encode())
    for name, found in sorted(objects.items()):
        version.update(f"{name}\0{found.bytes}\0{found.etag}\n".encode())
    target = folder() / "models" / f"{Path(uri).name}-{version.hexdigest()[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    record = target.with_name(f"{target.name}.json")
    with FileLock(target.with_name(f"{target.name}.lock")):
        files = _kept(target, record, objects)
        missing = {name: found for name, found in objects.items() if name not in files}
        if missing:
            _fetch_files(uri, target, record, missing, files, bars)
    return Copy(str(target), {name: file.sha256 for name, file in files.items()})


def _kept(target: Path, record: Path, objects: dict[str, _Object]) -> dict[str, _File]:
    """The recorded files that are still as they were fetched. What else is in the folder is removed."""
    try:
        known = _Files.read(record).files
    except (OSError, ValueError):
        known = {}
    kept = {name: file for name, file in known.items() if name in objects and _is_same(target / name, file)}
    for path in target.rglob("*"):
        if path.is_file() and path.relative_to(target).as_posix() not in kept:
            path.unlink()
    for draft in drafts(target.parent):
        if draft.name.startswith(f".{record.name}."):
            draft.unlink(missing_ok=True)
    return kept


def _is_same(path: Path, file: _File) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.bytes, file.changed_ns)


def _fetch_files(
    uri: str,
    target: Path,
    record: Path,
    missing: dict[str, _Object],
    files: dict[str, _File],
    bars: Bars,
) -> None:
    """Fetch files, and add each to `files` and to the record as soon as it is whole."""
    total = sum(found.bytes for found in missing.values())
    if total > shutil.disk_usage(target.parent).free:
        raise _full(uri, total)
    with bars.rows(f"fetch {Path(uri).name}", total >> 20, unit="MiB") as advance:
        done = 0

        def received(size: int) -> None:
            nonlocal done
            advance((done + size >> 20) - (done >> 20))
            done += size

        for name, source in missing.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{uuid.uuid4().hex}.part")
            _download(source, draft, received)
            digest, stat = sha256_at(draft), draft.stat()
            draft.replace(path)
            files[name] = _File(bytes=stat.st_size, changed_ns=stat.st_mtime_ns, sha256=digest)
            _Files(uri=uri, files=files).write(record, "cache")


def _download(source: _Object, path: Path, received: Callable[[int], None]) -> None:
    """Write one version of an object to a file, in ranges that are read at the same time."""
    with open(path, "xb") as file:

        def piece(start: int, stop: Stop) -> int:
            stop()
            end = min(start + _RANGE_BYTES, source.bytes)
            try:
                data = memoryview(source.location.range(source.etag, start, end))
            except FileNotFoundError:
                raise Replaced(f"{source.location}: was removed") from None
            place = start
            while data:
                written = os.pwrite(file.fileno(), data, place)
                data, place = data[written:], place + written
            return end - start

        with each(piece, range(0, source.bytes, _RANGE_BYTES)) as sizes:
            for size in sizes:
                received(size)
        file.flush()
        os.fsync(file.fileno())


def _full(uri: str, size: int) -> DiskFull:
    return DiskFull(
        f"{uri}: no space for its {size >> 20:,} MiB on the disk of {folder()} on {socket.gethostname()}. "
        f"Free space there, or set {VARIABLE} to a folder on a larger disk, and run the same command again"
    )
