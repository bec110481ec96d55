"""Objects in stores, by obstore. Each object is written with one conditional request."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple, TypeVar

from cachetools import LRUCache

from routelmt_batch.errors import StoreError, StoreRefused
from routelmt_batch.files import endpoints
from routelmt_batch.files.answers import explained, reason
from routelmt_batch.files.location import File, Location, Replaced, Stat
from routelmt_batch.files.profiles import profile_credentials

SCHEMES = ("s3", "gs", "az")
# What one request may write: https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html
MOST_BYTES = 5 * 10**9
T = TypeVar("T")
_BLOCK_BYTES = 8 << 20
# How long a request that fails is repeated, and the pauses. obstore repeats it three times in each try: no
# signal interrupts obstore, and it does not repeat all that may be repeated.
_RETRY_S = 180.0
_PAUSE_S, _MOST_PAUSE_S = 0.1, 5.0
_RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


@dataclass(frozen=True)
class ObjectLocation(Location):
    """An object's URI: `root` is scheme and bucket, such as s3://corpus, and `key` the rest."""

    root: str
    key: str
    has_versions: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.root}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> ObjectLocation:
        return ObjectLocation(self.root, f"{self.key}/{name}".lstrip("/"))

    @property
    def parent(self) -> ObjectLocation:
        return ObjectLocation(self.root, self.key.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def relative_to(self, folder: Location) -> PurePosixPath:
        if not isinstance(folder, ObjectLocation) or folder.root != self.root:
            raise ValueError(f"{self}: not below {folder}")
        return PurePosixPath(self.key).relative_to(folder.key)

    def canonical(self) -> ObjectLocation:
        return self

    @property
    def _store(self) -> Any:
        return _store(self.root)

    def stat(self) -> Stat | None:
        import obstore

        if not self.key:  # the bucket itself, a folder
            return None
        try:
            return _stat(self._tried(lambda: obstore.head(self._store, self.key)))
        except FileNotFoundError:
            return None

    def is_folder(self) -> bool:
        return next(self._listed(), None) is not None

    def nearest(self) -> ObjectLocation:
        return self

    def below(self) -> Iterator[ObjectLocation]:
        return (ObjectLocation(self.root, meta["path"]) for meta in self._listed())

    def _listed(self) -> Iterator[Any]:
        """Objects below this prefix. A list that breaks off is continued after its last name."""
        import obstore

        last: str | None = None
        patience = _Patience()
        while True:
            try:
                with self._explained():
                    for page in obstore.list(self._store, prefix=self.key or None, offset=last):
                        for meta in page:
                            yield meta
                            last = meta["path"]
                            patience.renew()
                return
            except StoreError as error:
                patience.wait(error)

    def sizes(self) -> dict[str, int]:
        prefix = f"{self.key}/" if self.key else ""
        found = ((meta["path"].removeprefix(prefix), int(meta["size"])) for meta in self._listed())
        return {name: size for name, size in found if "/" not in name}

    def names(self) -> list[str]:
        import obstore

        found = self._tried(lambda: obstore.list_with_delimiter(self._store, prefix=self.key or None))
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def read_bytes(self) -> bytes:
        import obstore

        return self._tried(lambda: bytes(obstore.get(self._store, self.key).bytes()))

    def read_fixed(self) -> bytes:
        return self._first("").data

    def open(self, version: str | None = None) -> File:
        first = self._first(version)
        if version is not None and first.stat.version != version:
            raise Replaced(f"{self}: changed since it was read")
        return File(_Ranges(self, first), first.stat, _BLOCK_BYTES)

    def _first(self, version: str | None) -> _First:
        """The first block of the object, with one request. A small object is whole in it, and stays in memory
        for the next one who wants this version; what never changes has the version "".

        Raises:
            FileNotFoundError: there is no object.
        """
        with _lock:
            kept = _small.get((self, version))
        if kept is not None:
            return kept
        first = self._tried(lambda: _read_first(self._store, self.key))
        if first.stat.bytes <= len(first.data):
            with _lock:
                for key in {version, first.stat.version} - {None}:
                    _small[self, key] = first
        elif version == "":
            return _First(self.read_bytes(), first.stat)
        return first

    def create(self, data: bytes) -> None:
        self._put(data, None)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="routelmt-") as folder:
            yield Path(folder, "draft")

    def publish(self, draft: Path, over: Stat | None) -> Stat:
        size = draft.stat().st_size
        if size > MOST_BYTES:
            raise StoreError(
                f"{self}: {size:,} bytes, and one request writes {MOST_BYTES:,} at most. Split the "
                "input into smaller shards, and start a new job"
            )
        with open(draft, "rb") as file:
            # Mapped, not read: the file's pages need no memory that the system could not take back.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            return self._put(data, over)

    def _put(self, data: bytes | mmap.mmap, over: Stat | None) -> Stat:
        """One conditional request. Whether a broken one was carried out is found by reading the object."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create"
        if over is not None:
            mode = {"e_tag": over.version, **({"version": over.id} if over.id else {})}

        def put() -> Stat:
            try:
                result = obstore.put(_store(self.root, reads=False), self.key, data, mode=mode)
                return Stat(len(data), result["e_tag"] or "", result["version"] or "")
            except (AlreadyExistsError, PreconditionError):
                now = self.stat()
                if now is None or not self._holds(data, now):
                    raise
                return now

        try:
            return self._tried(put)
        except (AlreadyExistsError, PreconditionError):
            raise Replaced(
                f"{self}: {'exists already' if over is None else 'changed since it was read'}"
            ) from None

    def _holds(self, data: bytes | mmap.mmap, now: Stat) -> bool:
        """Whether the object, as it is now, has these contents."""
        if now.bytes != len(data):
            return False
        with self.open(now.version) as file:
            position = 0
            while block := file.read(_BLOCK_BYTES):
                if data[position : position + len(block)] != block:
                    return False
                position += len(block)
        return True

    def remove(self, only: Stat | None = None) -> None:
        import obstore

        # obstore cannot remove on a condition: what must not be lost is not removed in a store.
        if only is not None and self.stat() != only:
            raise Replaced(f"{self}: changed since it was read")
        with contextlib.suppress(FileNotFoundError):
            self._tried(lambda: obstore.delete(self._store, self.key))

    def range(self, version: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object. Raises Replaced if it is no longer this version."""
        import obstore
        from obstore.exceptions import PreconditionError

        def get() -> bytes:
            answer = obstore.get(self._store, self.key, options={"if_match": version, "range": (start, end)})
            return bytes(answer.bytes())

        try:
            return self._tried(get)
        except PreconditionError:
            raise Replaced(f"{self}: changed since it was read") from None

    def _tried(self, request: Callable[[], T]) -> T:
        """A request that may be repeated, also where obstore does not: after a connection that was reset, or
        an answer that was cut."""
        patience = _Patience()
        while True:
            try:
                with self._explained():
                    return request()
            except StoreError as error:
                patience.wait(error)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises what answers.explained says; missing and changed objects are the caller's."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (FileNotFoundError, BaseError) as error:
            raise explained(self, error) from None


class _Patience:
    """How long a request that fails is repeated: for _RETRY_S after it failed first."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin again, after a success."""
        self._until, self._pause_s = 0.0, _PAUSE_S

    def wait(self, error: StoreError) -> None:
        """Wait before the next try. Raises the error if it is a refusal, or if the time is up."""
        now = time.monotonic()
        self._until = self._until or now + _RETRY_S
        if isinstance(error, StoreRefused) or now + self._pause_s > self._until:
            raise error
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)


class _First(NamedTuple):
    """The first block of an object."""

    data: bytes
    stat: Stat


# Small objects, each by its location and version: a shard is read by several stages, a part for many units.
_small: LRUCache[tuple[ObjectLocation, str | None], _First] = LRUCache(
    64 << 20, getsizeof=lambda first: len(first.data) + 500
)
_lock = threading.Lock()


class _Ranges(io.RawIOBase):
    """An object as a file; every read behind its first block is a request for this version."""

    def __init__(self, location: ObjectLocation, first: _First) -> None:
        self._location, self._first, self._stat, self._position = location, first.data, first.stat, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stat.bytes}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._stat.bytes)
        if end <= self._position:
            return 0
        if end <= len(self._first):
            data = self._first[self._position : end]
        else:
            data = self._location.range(self._stat.version, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _read_first(store: Any, key: str) -> _First:
    import obstore

    try:
        answer = obstore.get(store, key, options={"range": (0, _BLOCK_BYTES)})
        return _First(bytes(answer.bytes()), _stat(answer.meta))
    except FileNotFoundError:
        raise
    except obstore.exceptions.BaseError:
        if (meta := obstore.head(store, key))["size"]:
            raise
        return _First(b"", _stat(meta))  # an empty object has no first byte


def _stat(meta: Any) -> Stat:
    return Stat(meta["size"], meta["e_tag"] or "", meta["version"] or "")


@functools.cache
def _store(root: str, reads: bool = True) -> Any:
    """The client of a bucket. Endpoint, region and credentials are the environment's.

    Args:
        reads: give up a request whose answer does not begin within a minute. It may not be used to write,
            because the minute would begin with the upload.

    Raises:
        StoreRefused: an option there is missing or wrong.
    """
    import obstore.store
    from obstore.exceptions import BaseError

    endpoints.check(root, os.environ)
    try:
        return obstore.store.from_url(
            root,
            credential_provider=profile_credentials(root, os.environ),
            client_options={
                "timeout": timedelta(minutes=30),  # of the whole request: a large shard on a slow line
                **({"read_timeout": timedelta(seconds=60)} if reads else {}),
                "allow_http": endpoints.is_plain(os.environ),
            },
            retry_config=_RETRIES,
        )
    except BaseError as error:  # nothing was asked yet
        raise StoreRefused(
            f"{root}: the store's options in the environment or in `storage` of the spec are not complete or "
            f"not valid ({reason(error)}). Correct them"
        ) from None
