"""A file or a folder, on a disk, in an object store or on a hub."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple, Self

from routelmt_batch.errors import RoutelmtError


class Stat(NamedTuple):
    """A file as it was read: its size, and its version (an object's ETag, a file's time of change).

    `id` tells apart two files of the same version: a file's inode, which nodes may see differently, or an
    object's generation.
    """

    bytes: int
    version: str
    id: str = ""


class File(io.BufferedReader):
    """An open file, and what it was when it was opened."""

    def __init__(self, raw: io.RawIOBase, stat: Stat, block_bytes: int = io.DEFAULT_BUFFER_SIZE) -> None:
        super().__init__(raw, block_bytes)
        self.stat = stat


class Replaced(RoutelmtError):
    """A file is not what it was when it was read, or exists although it was to be created."""


class Location(ABC):
    """A path on a disk, the URI of an object, or of a file on a hub. `str` gives it as an operator writes it.

    Folders need not be made, and exist if there is a file below them. All methods raise StoreError if a store
    does not answer or denies access.
    """

    # Whether contents of the same version are the same for certain: then nothing need be read to know it.
    has_versions: ClassVar[bool] = False

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def __truediv__(self, name: str) -> Self: ...

    @property
    @abstractmethod
    def parent(self) -> Self: ...

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def relative_to(self, folder: Location) -> PurePosixPath:
        """The path below a folder. Raises ValueError if it is not below it."""

    def is_below(self, folder: Location) -> bool:
        try:
            self.relative_to(folder)
        except ValueError:
            return False
        return True

    @abstractmethod
    def canonical(self) -> Self:
        """The same file by its one name: links of a disk are followed."""

    def pinned(self) -> Self:
        """The same file or folder as it is now, where it has revisions: for a hub's branch, its commit."""
        return self

    @abstractmethod
    def stat(self) -> Stat | None:
        """Size and version of a file; None if there is none."""

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.stat() is not None

    @abstractmethod
    def is_folder(self) -> bool: ...

    @abstractmethod
    def nearest(self) -> Self:
        """This path, or the nearest above it that exists, which may be a file. In a store all folders do."""

    def make_private(self) -> None:
        """Make this folder, if folders have to be made and it does not exist, for its owner alone."""
        return

    @abstractmethod
    def below(self) -> Iterator[Self]:
        """Every file below a folder, at any depth. In a store the list may lack what was just written. On a
        disk links are followed; one that leads nowhere counts as a file.

        Raises:
            OSError: a folder cannot be listed, or links lead in a circle.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the files and folders in a folder; none if there is no such folder."""

    def sizes(self) -> dict[str, int]:
        """Bytes of the files in a folder, by name. In a store the list may lack what was just written."""
        found = ((file.name, file.stat()) for file in self.below() if file.parent == self)
        return {name: stat.bytes for name, stat in found if stat}

    @abstractmethod
    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError if there is no file."""

    def read_fixed(self) -> bytes:
        """The contents of a file that is never changed once it is written. They may come from a cache."""
        return self.read_bytes()

    def read_text(self) -> str:
        return self.read_bytes().decode("utf8")

    def read_json(self) -> Any:
        return json.loads(self.read_bytes())

    @abstractmethod
    def open(self, version: str | None = None) -> File:
        """The file for reading at any position.

        Args:
            version: raise Replaced if the file is not, or no longer, this version.

        Raises:
            FileNotFoundError: there is no file.
        """

    @abstractmethod
    def create(self, data: bytes) -> None:
        """Write a file that does not exist yet, whole and durably. Raises Replaced if it exists."""

    @abstractmethod
    def draft(self) -> AbstractContextManager[Path]:
        """The path of a new local file for what will be published here; it is removed afterwards."""

    @abstractmethod
    def publish(self, draft: Path, over: Stat | None) -> Stat:
        """Give a draft its name, durably: at every moment the name has the old contents or the new, whole.

        Args:
            over: the file that it replaces, as it was read; None if there was none.

        Returns:
            The file as it is now.

        Raises:
            Replaced: the file is not what it was when it was read.
        """

    @abstractmethod
    def remove(self, only: Stat | None = None) -> None:
        """Remove the file, if it exists. Raises Replaced if it is not `only` that version."""

    def __fspath__(self) -> str:
        raise TypeError(f"{self}: is not on a disk")
