"""Where models are, for the libraries that load them: copies from object stores on this node's disk, and
commits on the hub.

It knows this process only, and fetches nothing: see store/cache.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Copy:
    """A model's folder on this node's disk, and the SHA-256 of each of its files by its path there.

    Of a model on the hub: its name there, no files, and the commit that this job loads.
    """

    folder: str
    files: Mapping[str, str]
    commit: str | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 over the files' names and SHA-256s."""
        text = "".join(f"{name} {digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(text.encode()).hexdigest()


_COPIES: dict[str, Copy] = {}


def add(copies: Mapping[str, Copy]) -> None:
    """Make copies known, by their models' URIs."""
    _COPIES.update(copies)


def copies(*sources: str) -> dict[str, Copy]:
    """The copies that hold these sources, by URI. Sources that are no URI of a fetched model have none."""
    return {uri: copy for uri, copy in _COPIES.items() if any(_rest(source, uri) for source in sources)}


def local(source: str) -> str:
    """The path of a fetched model's folder, or of a file in it, by its URI. Any other source is returned
    unchanged."""
    for uri, copy in _COPIES.items():
        if rest := _rest(source, uri):
            return copy.folder + rest.rstrip("/")
    return source


def commit(source: str) -> str | None:
    """The commit of a hub name that this job loads. Other sources have none."""
    return next((copy.commit for copy in copies(source).values()), None)


def digest(path: Path) -> str | None:
    """The SHA-256 of a file of a fetched model, as it was fetched; None for any other file."""
    for copy in _COPIES.values():
        if path.is_relative_to(copy.folder):
            return copy.files.get(path.relative_to(copy.folder).as_posix())
    return None


def _rest(source: str, uri: str) -> str:
    """`/` and the part of a source below a URI; empty if it is not that URI or below it."""
    below = f"{source.rstrip('/')}/"
    return below[len(uri) :] if below.startswith(f"{uri}/") else ""
