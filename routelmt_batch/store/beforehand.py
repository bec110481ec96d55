"""What is checked of an output before anything is written: its place, its names, and the disk's space."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from routelmt_batch.corpus.shards import Shard, is_passed_over, rule
from routelmt_batch.errors import DiskFull, InputError, OutputError
from routelmt_batch.files.disk import DRAFT_BYTES, DiskLocation
from routelmt_batch.files.location import Location
from routelmt_batch.files.uris import locate
from routelmt_batch.progress import Bars

_MOST_BYTES_OF_NAME = 255
_MOST_BYTES_OF_PATH = 4095
_OWN_BYTES = 255  # of the paths of work files below the output, at most
_MOST_BYTES_OF_KEY = 1024  # of an object: S3, Google Cloud Storage
_REPORT = ".json"


def check_place(root: Location, uris: Sequence[str]) -> None:
    """Raises OutputError if nothing can be written at the output's path, if it lies inside an input, or an
    input inside it. Links are followed."""
    if isinstance(root, DiskLocation):
        _check_path(root.path)
    here = root.canonical()
    for uri in uris:
        source = locate(uri)
        there = rule(source)[0].canonical()
        if here.is_below(there) and source.is_folder() and not is_passed_over(here.relative_to(there)):
            raise OutputError(
                f"output.uri {root}: lies inside input.uri {uri}, where its shards would be taken for "
                "input. Give a folder elsewhere"
            )
        if there.is_below(here):
            raise OutputError(
                f"output.uri {root}: input.uri {uri} lies inside it, among the files that a job writes. Give "
                "a folder elsewhere"
            )


def _check_path(path: Path) -> None:
    """Raises OutputError if a folder cannot be made at a path, or if files are in the way of a job's own."""
    if len(os.fsencode(path)) > (most := _MOST_BYTES_OF_PATH - _OWN_BYTES):
        raise OutputError(f"output.uri {path}: has more than {most} bytes. Give a shorter path")
    if any(len(os.fsencode(name)) > _MOST_BYTES_OF_NAME for name in path.parts):
        raise OutputError(
            f"output.uri {path}: has a name of more than {_MOST_BYTES_OF_NAME} bytes. Give a shorter one"
        )
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise OutputError(
                f"output.uri {path}: {place} is a link that leads nowhere. Make the folder that it names, or "
                "give another output"
            )
    for name in ("_job", "data", "reports"):
        if (path / name).is_file():
            raise OutputError(
                f"output.uri {path}: {name} is a file there, and a job needs a folder of that name. Give "
                "another folder, or move the file"
            )


def check_names(root: Location, uris: Sequence[str], names: Sequence[str]) -> None:
    """Check what will be written for shards with these names: `data/NAME`, `reports/NAME.json` and drafts.

    Raises:
        InputError: a name is too long, or two files would have one name.
        OutputError: an input's glob takes output shards for input.
    """
    _refuse_clashes(names)
    data = root.canonical() / "data"
    rules = [(there.canonical(), pattern) for there, pattern in map(rule, map(locate, uris))]
    of_files = _most_bytes(root)
    for name in names:
        _refuse_long(root, name, of_files)
        output = data / name
        for there, pattern in rules:
            below = output.relative_to(there) if output.is_below(there) else None
            if below and pattern.match(str(below)) and not is_passed_over(below):
                raise OutputError(
                    f"output.uri {root}: its shards, such as data/{name}, match an input.uri and would be "
                    "taken for input. Give a folder elsewhere, or an input.uri that does not match them"
                )


def _refuse_clashes(names: Sequence[str]) -> None:
    nearest = {PurePosixPath(name.rpartition("/")[0]) for name in names}
    folders = {str(folder) for inner in nearest for folder in (inner, *inner.parents)}
    for name in names:
        if name == "job":
            raise InputError(f"{name}: its report would be reports/job.json, which is the job's: rename it")
        if name in folders or f"{name}{_REPORT}" in folders:
            raise InputError(
                f"{name}: is a file, and its output or report would have the name of a folder with other "
                "shards: rename it"
            )


def _most_bytes(root: Location) -> int:
    """The longest name of a file on the output's disk."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(root, DiskLocation):
            return os.pathconf(root.nearest().path, "PC_NAME_MAX")
    return _MOST_BYTES_OF_NAME


def _refuse_long(root: Location, name: str, of_files: int) -> None:
    report = f"{root}/reports/{name}{_REPORT}"
    if isinstance(root, DiskLocation):
        added = len(_REPORT) + DRAFT_BYTES
        longest, most = len(name.rpartition("/")[2].encode()) + added, of_files
        whole, most_whole = len(os.fsencode(report)) + DRAFT_BYTES, _MOST_BYTES_OF_PATH
    else:
        longest = most = added = 0
        whole, most_whole = len(report.partition("://")[2].partition("/")[2].encode()), _MOST_BYTES_OF_KEY
    if longest > most:
        raise InputError(
            f"{name}: the name is too long for the output's disk, where a name has at most {most} bytes, "
            f"{added} of them for its report and drafts: rename it to {most - added} bytes or fewer"
        )
    if whole > most_whole:
        raise InputError(
            f"{name}: its path in the output would have {whole} bytes, and {most_whole} are allowed: give a "
            "shorter output.uri, or rename it"
        )


def check_space(root: Location, shards: Sequence[Shard], limit: int | None, bars: Bars) -> None:
    """Compare the free space with the input's size: the output has all its columns, and translations. Less is
    a warning, because it may be enough for an input that is compressed badly.

    Raises:
        DiskFull: there is less than half of it.
    """
    if not isinstance(root, DiskLocation):
        return
    rows = sum(shard.rows for shard in shards)
    share = min(1.0, limit / rows) if limit and rows else 1.0
    size = share * sum(shard.size_bytes for shard in shards)
    free = shutil.disk_usage(root.nearest().path).free
    if free >= size:
        return
    words = (
        f"output.uri {root}: {free / 1e9:.2f} GB are free on its disk, and the job writes all columns of "
        f"{size / 1e9:.2f} GB of input there, and translations"
    )
    if free < size / 2:
        raise DiskFull(f"{words}. Free space, or give an output on another disk")
    bars.warn(f"{words}: this may not be enough")
