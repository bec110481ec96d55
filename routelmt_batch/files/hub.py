"""Datasets on the Hugging Face hub, by huggingface_hub. They are read and never written."""

from __future__ import annotations

import errno
import functools
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from routelmt_batch.errors import DiskFull, RoutelmtError, StoreError, StoreRefused, UsageError
from routelmt_batch.files.location import File, Location, Replaced, Stat

SCHEME = "hf"
SYNTAX = "hf://datasets/OWNER/NAME[@REVISION][/PATH]"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_QUERY = re.compile(r"\?\S*")  # of a URL: a signed one is a credential
_TIMEOUT_S = 60.0
_MOST_CHARS = 300


@dataclass(frozen=True)
class HubLocation(Location):
    """A file or folder in a dataset's repository: `repo` is OWNER/NAME, `revision` a branch, tag or commit.

    A file is downloaded whole into huggingface_hub's cache, once on each node that reads it, and read there.
    To read ranges from the hub would need no space on a node. But a shard is read several times (inspected,
    scored, translated, assembled), each time in many ranges, and the hub limits the requests of a user. A
    commit's file that is in the cache is read without any request, also while the hub does not answer.
    """

    repo: str
    revision: str | None
    path: str
    listed: Stat | None = field(default=None, compare=False, repr=False)  # what a list of files says of it
    has_versions: ClassVar[bool] = True

    @classmethod
    def of(cls, uri: str) -> HubLocation:
        """Raises UsageError if it is not the URI of a dataset."""
        from huggingface_hub import parse_hf_uri
        from huggingface_hub.errors import HfUriError

        try:
            parsed = parse_hf_uri(uri)
        except HfUriError as error:
            raise UsageError(f"{uri}: {error.msg} Give {SYNTAX}") from None
        if parsed.type != "dataset":
            raise UsageError(f"{uri}: is a {parsed.type}, and only datasets are read: give {SYNTAX}")
        return cls(parsed.id, parsed.revision, parsed.path_in_repo)

    def __str__(self) -> str:
        from huggingface_hub import HfUri

        return str(HfUri("dataset", self.repo, self.revision, self.path).to_uri())

    def __truediv__(self, name: str) -> HubLocation:
        return HubLocation(self.repo, self.revision, f"{self.path}/{name}".lstrip("/"))

    @property
    def parent(self) -> HubLocation:
        return HubLocation(self.repo, self.revision, self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def relative_to(self, folder: Location) -> PurePosixPath:
        if not isinstance(folder, HubLocation) or (folder.repo, folder.revision) != (
            self.repo,
            self.revision,
        ):
            raise ValueError(f"{self}: not below {folder}")
        return PurePosixPath(self.path).relative_to(folder.path)

    def canonical(self) -> HubLocation:
        return self.pinned()

    def pinned(self) -> HubLocation:
        """Raises UsageError if there is no such dataset or revision."""
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self
        with self._explained():
            info = _api().dataset_info(self.repo, revision=self.revision, expand=["sha"], timeout=_TIMEOUT_S)
        return replace(self, revision=info.sha)

    def stat(self) -> Stat | None:
        return self.listed or (self.parent._entries().get(self.name) if self.name else None)

    def is_folder(self) -> bool:
        return not self.name or self.parent._entries().get(self.name, self) is None

    def nearest(self) -> HubLocation:
        return self

    def below(self) -> Iterator[HubLocation]:
        from huggingface_hub import RepoFile

        place = self.pinned()
        for entry in place._tree(recursive=True):
            if isinstance(entry, RepoFile):
                yield HubLocation(self.repo, place.revision, entry.path, _stat(entry))

    def names(self) -> list[str]:
        return sorted(self._entries())

    def read_bytes(self) -> bytes:
        return self._download().read_bytes()

    def open(self, version: str | None = None) -> File:
        place = self.pinned()
        path = place._download()
        raw = io.FileIO(path)
        size = os.fstat(raw.fileno()).st_size
        # The version that a file of a commit had once is its version, so the hub is not asked for it again.
        now = Stat(size, version) if version is not None and place is self else place.stat()
        if now is not None and now.bytes == size and version in (None, now.version):
            return File(raw, now)
        raw.close()
        if now is None or now.bytes == size:
            raise Replaced(f"{self}: changed since it was read")
        raise StoreError(
            f"{self}: has {now.bytes:,} bytes on the hub and {size:,} in the cache. Remove {path} and run "
            "the same command again"
        )

    def create(self, data: bytes) -> None:
        raise self._read_only()

    def draft(self) -> AbstractContextManager[Path]:
        raise self._read_only()

    def publish(self, draft: Path, over: Stat | None) -> Stat:
        raise self._read_only()

    def remove(self, only: Stat | None = None) -> None:
        raise self._read_only()

    def _read_only(self) -> StoreError:
        return StoreError(f"{self}: datasets on the hub are only read. Give a path or an object store")

    def _entries(self) -> Mapping[str, Stat | None]:
        """Files of a folder by name, each with size and version, and its folders, each with None."""
        return _entries_of(self.pinned())

    def _tree(self, recursive: bool) -> list[Any]:
        """RepoFile and RepoFolder objects below a folder of a commit; none if there is no such folder."""
        from huggingface_hub.errors import EntryNotFoundError

        with self._explained():
            try:
                return list(
                    _api().list_repo_tree(
                        self.repo,
                        self.path or None,
                        recursive=recursive,
                        revision=self.revision,
                        repo_type="dataset",
                    )
                )
            except EntryNotFoundError:
                return []

    def _download(self) -> Path:
        """The file's path in the cache, where it is after this call.

        Raises:
            FileNotFoundError: there is no file.
            DiskFull: no space was left.
        """
        if not self.path:
            raise FileNotFoundError(str(self))
        with self._explained():
            return Path(
                _api().hf_hub_download(self.repo, self.path, revision=self.revision, repo_type="dataset")
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the hub's client raises into this package's errors; missing files stay missing files."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            yield
        except RemoteEntryNotFoundError:
            raise FileNotFoundError(str(self)) from None
        except Exception as error:  # which HTTP client raises what differs between the hub client's versions
            raise self._explanation(error) from None

    def _explanation(self, error: BaseException) -> RoutelmtError:
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
            error = error.__cause__  # why it could not be downloaded, either
        if isinstance(error, GatedRepoError):
            return StoreRefused(
                f"{self}: this dataset is gated. Accept its terms at "
                f"{constants.ENDPOINT}/datasets/{self.repo}, and set HF_TOKEN on every node"
            )
        if isinstance(error, RepositoryNotFoundError):
            return UsageError(
                f"{self}: no such dataset, or no access to it. Check its name, and set HF_TOKEN on every "
                "node if it is private"
            )
        if isinstance(error, RevisionNotFoundError):
            return UsageError(f"{self}: no such revision. Give a branch, a tag or a whole commit hash")
        if isinstance(error, OfflineModeIsEnabled):
            return StoreRefused(f"{self}: the hub is not asked while HF_HUB_OFFLINE is set. Unset it")
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            return StoreRefused(
                f"{self}: the hub denies access (HTTP {error.response.status_code}). Check HF_TOKEN, and "
                "that it may read this dataset"
            )
        cache = constants.HF_HUB_CACHE
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(
                f"{self}: no space left in {cache}, where every node keeps the input files that it reads. "
                "Free space, or set HF_HUB_CACHE to a folder on a larger disk, and run the same command again"
            )
        if isinstance(error, OSError) and error.errno:
            return StoreRefused(
                f"{self}: cannot be kept in {cache} ({error.strerror}). Set HF_HUB_CACHE to another folder"
            )
        return StoreError(
            f"{self}: {constants.ENDPOINT} did not do it ({_reason(error)}). Nothing committed is lost: "
            "check the network, and run the same command again"
        )


def _stat(entry: Any) -> Stat:
    """Size and version of a RepoFile: its SHA-256, or for small files the SHA-1 of git."""
    return Stat(entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)


@functools.lru_cache(maxsize=64)
def _entries_of(folder: HubLocation) -> Mapping[str, Stat | None]:
    """See HubLocation._entries. A folder of a commit never changes."""
    from huggingface_hub import RepoFile

    return {
        entry.path.rpartition("/")[2]: _stat(entry) if isinstance(entry, RepoFile) else None
        for entry in folder._tree(recursive=False)
    }


def _reason(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP {status}"
    return _QUERY.sub("", " ".join(f"{type(error).__name__}: {error}".split()))[:_MOST_CHARS]


def _api() -> Any:
    """The hub's client. HF_ENDPOINT, HF_TOKEN and HF_HUB_CACHE name its endpoint, token and cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # it would log each retry; our error reports the outcome
    disable_progress_bars()
    return HfApi()
