"""A job's commit log: numbered segments that are created once and never changed, on a disk or in a store.

One process writes. It takes the log by creating the next segment under a new epoch; whoever had it before
cannot create that number any more, and stops. A segment is JSON lines: a header with its number, its epoch,
its writer and the SHA-256 of the segment before; records; and the SHA-256 of its own lines. Each 64 segments
are also written as one, and 64 of these again, so that a long log opens quickly.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from routelmt_batch.errors import OutputError, RoutelmtError, WorkChanged
from routelmt_batch.files.location import Location, Replaced

Record = dict[str, Any]

# An idle writer adds a sign of life this often; without one for so long, another may take the log.
SIGN_OF_LIFE_S = 10.0
LEASE_S = 30.0
NOT_THE_NEXT = "does not follow from the one before: one of them was replaced"
_TOGETHER = 64  # segments in a compacted one
_LEVELS = 3
_FORMAT = 1
_writing: set[str] = set()  # logs that this process writes


class TakenOver(RoutelmtError):
    """Another process has taken the job; what this one does from now on does not count."""


@dataclass(frozen=True)
class Writer:
    """A process that writes a log. `since` is when it began, in seconds since 1970, and `space` in which
    start of which system, and in which of its containers, `pid` means this process."""

    host: str
    pid: int
    since: float
    space: str = ""

    @classmethod
    def this(cls) -> Writer:
        return _writer(os.getpid())

    def __str__(self) -> str:
        began = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        return f"process {self.pid} on {self.host}, begun {began}"

    def is_dead(self) -> bool:
        """Whether it ran beside this process and has ended. Of others this is not known."""
        if self.space != _space():
            return False
        try:
            process = psutil.Process(self.pid)
            ended = process.status() == psutil.STATUS_ZOMBIE
            return ended or bool(abs(process.create_time() - self.since) > 1)
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class Segment:
    """One or, compacted, several segments: their records, and the last one's header."""

    first: int
    last: int
    epoch: int
    writer: Writer
    run: str  # whose this segment is, among all that open the log
    at: str
    previous: str  # SHA-256 of the segment before `first`; empty for the first of all
    records: tuple[Record, ...]
    sha256: str  # of the last segment

    def follows(self, before: Segment) -> bool:
        return self.previous == before.sha256 and self.epoch >= before.epoch

    @property
    def released(self) -> bool:
        """Whether its writer has ended its work."""
        return bool(self.records) and self.records[-1].get("event") == "released"


class Log:
    """The log in a folder. Reading needs no lock: segments never change.

    Not thread-safe.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.last: Segment | None = None
        self.epoch = 0  # this process's own; 0 while it only reads
        self.run = uuid.uuid4().hex
        self._recent: list[Segment] = []

    @property
    def next(self) -> int:
        return self.last.last + 1 if self.last else 0

    def read(self) -> Iterator[Record]:
        """The records that were added since the last call.

        Raises:
            WorkChanged: a segment is damaged or missing.
        """
        while segment := self._read_next():
            self.last = segment
            yield from segment.records

    def _read_next(self) -> Segment | None:
        damaged: WorkChanged | None = None
        for level in reversed(range(_LEVELS)):
            if self.next % _TOGETHER**level == 0:
                path = self._path(self.next, level)
                try:
                    segment = self.segment(path.name)
                    if self.last and not segment.follows(self.last):
                        raise self._damaged(path, NOT_THE_NEXT)
                    return segment
                except FileNotFoundError:
                    continue
                except WorkChanged as error:
                    damaged = error  # a compacted one is only a copy
        if damaged:
            raise damaged
        return None

    def segment(self, name: str) -> Segment:
        """The segment in a file of the log.

        Raises:
            FileNotFoundError: there is no such file.
            WorkChanged: it is damaged.
        """
        path = self.folder / name
        return self._decode(path, path.read_bytes())

    def files(self) -> dict[tuple[int, int], str]:
        """Names of the log's files, in order, by the numbers of the first and the last segment in them."""
        found = (re.fullmatch(r"(\d{10})(?:-(\d{10}))?\.jsonl", name) for name in self.folder.names())
        return {(int(file[1]), int(file[2] or file[1])): file[0] for file in found if file}

    def check_complete(self) -> None:
        """Raises WorkChanged if there are segments after the last one read, so that one is missing."""
        later = any(last > self.next for _, last in self.files())
        if later and not self._path(self.next, 0).exists():
            raise self._damaged(self._path(self.next, 0), "is missing, although later ones exist")

    def take(self) -> None:
        """Make this process the writer, under the next epoch.

        Raises:
            OutputError: another process took the log since it was read.
        """
        before = self.last.epoch if self.last else 0
        self.epoch = before + 1
        try:
            self.add([{"event": "epoch", "epoch": self.epoch, "after": self.next - 1}])
        except BaseException as error:
            self.close()
            if not isinstance(error, TakenOver):
                raise
            raise OutputError(
                f"{self.folder.parent.parent}: another run began this job a moment ago "
                f"({self.last and self.last.writer}). When it has ended, the same command continues the job"
            ) from None
        _writing.add(str(self.folder))

    def add(self, records: Sequence[Record]) -> None:
        """Add records durably, all or none, as one segment.

        Raises:
            TakenOver: another process created this segment first.
        """
        assert self.epoch, "taken before"
        number = self.next
        header = {
            "format": _FORMAT,
            "first": number,
            "last": number,
            "epoch": self.epoch,
            "writer": asdict(Writer.this()),
            "run": self.run,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "previous": self.last.sha256 if self.last else "",
        }
        path, data = self._path(number, 0), _encode(header, records)
        try:
            path.create(data)
        except (Replaced, FileNotFoundError):  # a run that takes the job over removes this one's drafts
            if not self._is_own(path):
                raise self._taken_over() from None
            # A signal came between an earlier attempt's write and its end: its records are there.
            self.last = self._decode(path, path.read_bytes())
            if rest := records[len(self.last.records) :]:
                self.add(rest)
            return
        self.last = self._decode(path, data)
        self._compact(self.last)

    def _is_own(self, path: Location) -> bool:
        segment = self._decode(path, path.read_bytes())
        return segment.run == self.run

    def check(self) -> None:
        """Raises TakenOver if another process has taken the log."""
        path = self._path(self.next, 0)
        if path.exists() and not self._is_own(path):
            raise self._taken_over()

    def _taken_over(self) -> TakenOver:
        self.close()
        for _ in self.read():  # to name the other
            pass
        return TakenOver(_taken_over_by(self.folder, self.last.writer if self.last else None))

    def release(self) -> None:
        """End this process's work, so that the next one need not wait for it."""
        self.add([{"event": "released"}])
        self.close()

    def close(self) -> None:
        """End this process's work without a record of it."""
        self.epoch = 0
        _writing.discard(str(self.folder))

    def _compact(self, segment: Segment) -> None:
        """Write the last 64 segments as one where 64 are complete; it replaces no reading of the others."""
        self._recent.append(segment)
        self._recent = self._recent[-_TOGETHER:]
        if segment.last % _TOGETHER != _TOGETHER - 1:
            return
        for level in range(1, _LEVELS):
            first = segment.last + 1 - _TOGETHER**level
            if (segment.last + 1) % _TOGETHER**level:
                return
            parts = self._parts(first, level)
            header = {
                "format": _FORMAT,
                "first": first,
                "last": segment.last,
                "epoch": segment.epoch,
                "writer": asdict(segment.writer),
                "run": segment.run,
                "at": segment.at,
                "previous": parts[0].previous,
                "sha256": segment.sha256,
            }
            kept = [record for part in parts for record in part.records if record.get("event") != "alive"]
            try:
                self._path(first, level).create(_encode(header, kept))
            except (Replaced, FileNotFoundError):
                return

    def _parts(self, first: int, level: int) -> list[Segment]:
        """The segments of the level below that a compacted one contains."""
        step = _TOGETHER ** (level - 1)
        recent = {segment.first: segment for segment in self._recent} if level == 1 else {}
        parts: list[Segment] = []
        for number in range(first, first + _TOGETHER**level, step):
            try:
                parts.append(recent.get(number) or self.segment(self._path(number, level - 1).name))
            except (FileNotFoundError, WorkChanged):
                if level == 1:
                    raise
                # Its writer was killed before it was compacted, or this copy is damaged.
                parts += self._parts(number, level - 1)
        return parts

    @property
    def writer(self) -> Writer | None:
        """Who may be writing the log; None if its last writer has ended.

        Of a writer on another host, or one that is stopped, only signs of life tell more.
        """
        last = self.last
        if last is None or last.released or last.writer.is_dead():
            return None
        ours = last.writer == Writer.this() and str(self.folder) not in _writing
        return None if ours else last.writer

    @property
    def holder(self) -> Writer | None:
        """Who writes the log now, by the last sign of life and this host's clock; None if nobody does."""
        if self.last is None or self.writer is None:
            return None
        age = datetime.now(UTC) - datetime.fromisoformat(self.last.at)
        return self.writer if age.total_seconds() < 2 * LEASE_S else None

    def _path(self, number: int, level: int) -> Location:
        name = f"{number:010d}" if not level else f"{number:010d}-{number + _TOGETHER**level - 1:010d}"
        return self.folder / f"{name}.jsonl"

    def _decode(self, path: Location, data: bytes) -> Segment:
        body, _, last = data.rstrip(b"\n").rpartition(b"\n")
        body += b"\n"
        digest = hashlib.sha256(body).hexdigest()
        try:
            whole = json.loads(last)["sha256"] == digest
            header, *records = map(json.loads, body.splitlines())
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise self._damaged(path, "is damaged: its checksum does not match")
        return Segment(
            header["first"],
            header["last"],
            header["epoch"],
            Writer(**header["writer"]),
            header["run"],
            header["at"],
            header["previous"],
            tuple(records),
            header.get("sha256") or digest,
        )

    def _damaged(self, path: Location, what: str) -> WorkChanged:
        return WorkChanged(
            f"{path}: this segment of the job's log {what}. What was committed in it and after it is not "
            "known. Restore the file, or start a new job with another --output. `routelmt-batch verify` says "
            "what else is damaged"
        )


class Fence:
    """Checks, in any process, that a run still writes its job. It is pickled into tasks."""

    def __init__(self, log: Log) -> None:
        self._folder, self._run, self._next = log.folder, log.run, log.next

    def __call__(self) -> None:
        """Raises TakenOver if another run has taken the job."""
        log = Log(self._folder)
        while True:
            try:
                segment = log.segment(f"{self._next:010d}.jsonl")
            except FileNotFoundError:
                return
            if segment.run != self._run:
                raise TakenOver(_taken_over_by(self._folder, segment.writer))
            self._next += 1


def _taken_over_by(folder: Location, writer: Writer | None) -> str:
    return (
        f"{folder.parent.parent}: this job was taken over by {writer}. This run stops; what it committed "
        "before counts, and nothing after it"
    )


@functools.cache
def _writer(pid: int) -> Writer:
    began = round(psutil.Process(pid).create_time(), 2)
    return Writer(socket.gethostname(), pid, began, _space())


@functools.cache
def _space() -> str:
    """This start of the system, and the namespace of its process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"


def _encode(header: Mapping[str, Any], records: Sequence[Record]) -> bytes:
    lines = [json.dumps(line, ensure_ascii=False) for line in (header, *records)]
    body = "".join(f"{line}\n" for line in lines).encode()
    return body + f'{{"sha256": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()
