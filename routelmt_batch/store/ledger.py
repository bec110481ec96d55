"""What of a job is committed: an append-only file of JSON lines, and who holds the job.

Readers trust the ledger, never a folder listing: a part that it does not name does not exist.
It knows names, row ranges and counts, not what the rows say.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from filelock import FileLock, Timeout

from routelmt_batch.atomic import disk_full, sha256
from routelmt_batch.errors import OutputError, WorkChanged
from routelmt_batch.failpoints import reach

SCORES = "scores"
TRANSLATIONS = "translations"
QUALITY = "quality"
CHECKS = "checks"
GUARD = "guard"
AUDIT = "audit"
AUDIT_TRANSLATIONS = "audit_translations"
AUDIT_QUALITY = "audit_quality"
STAGES = (SCORES, TRANSLATIONS, CHECKS, QUALITY, GUARD, AUDIT, AUDIT_TRANSLATIONS, AUDIT_QUALITY)
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Span:
    """Rows of one shard in one part: how many, the lowest and the highest."""

    rows: int
    low: int
    high: int


@dataclass(frozen=True)
class PartEntry:
    """One committed part of a stage. `model` is the one whose rows it holds, where a part is of one model's.
    `spans` by shard; `counts` sums what its rows are, by name."""

    stage: str
    model: str | None
    part: str
    bytes: int
    sha256: str
    spans: dict[str, Span]
    counts: dict[str, int] = field(default_factory=dict)
    generation: int = 0  # how many `--retry-failed` came before it

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans.values())


class Ledger:
    """The commits of one job, in order. One process writes; any may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent
        self.parts: dict[str, list[PartEntry]] = defaultdict(list)
        self.events: list[dict[str, Any]] = []
        self._by_shard: dict[tuple[str, str], list[PartEntry]] = defaultdict(list)
        self._totals: Counter[tuple[str, str]] = Counter()
        self._whole_bytes = 0
        self.generation = 0  # how many `--retry-failed` there were
        self.catch_up()

    def catch_up(self) -> None:
        """Read what was committed since the last time."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._whole_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # a crash cut the last line: it was never committed
                self._whole_bytes += len(line)
                self._take(json.loads(line))

    def open_for_writing(self) -> None:
        """Drop a torn last line and check that every committed part is there, whole."""
        self.drop_torn_line()
        for entries in self.parts.values():
            for entry in entries:
                path = self.part_path(entry)
                if not path.exists() or sha256(path) != entry.sha256:
                    raise WorkChanged(
                        f"{path}: committed, and now missing or with other contents. Restore it, or "
                        "start again with another --output"
                    )

    def drop_torn_line(self) -> None:
        if self.path.exists():
            with open(self.path, "r+b") as file:
                file.truncate(self._whole_bytes)

    def sweep(self) -> None:
        """Remove what a crash left: parts that were written and never committed."""
        for paths in self.unnamed().values():
            for path in paths:
                reach("sweep")
                path.unlink(missing_ok=True)

    def unnamed(self, leaving_out: Container[str] = ()) -> dict[str, list[Path]]:
        """Files that the ledger does not name, by stage; of stages `leaving_out`, all."""
        names = {
            stage: {entry.part for entry in self.parts[stage] if stage not in leaving_out} for stage in STAGES
        }
        return {
            stage: [path for path in sorted((self.folder / stage).glob("*")) if path.name not in names[stage]]
            for stage in STAGES
        }

    def part_path(self, entry: PartEntry) -> Path:
        return self.folder / entry.stage / entry.part

    def _take(self, line: dict[str, Any]) -> None:
        if "part" not in line:
            self.events.append(line)
            self.generation += line["event"] == "retry_failed"
            if stages := line.get("cleared"):
                self._clear(stages)
            totals = self._totals.copy()
            for part in line.get("parts", ()):
                self._take(part)
            if stages:
                self._totals = totals  # the rows that it kept were counted before
            return
        spans = {shard: Span(*span) for shard, span in line["spans"].items()}
        entry = PartEntry(**{**line, "spans": spans})
        self.parts[entry.stage].append(entry)
        self._totals[entry.stage, "rows"] += entry.rows
        for name, count in entry.counts.items():
            self._totals[entry.stage, name] += count
        for shard in spans:
            self._by_shard[entry.stage, shard].append(entry)

    def _clear(self, stages: Container[str]) -> None:
        """Forget the parts of some stages, but not how many rows they held and what those were."""
        self.parts = defaultdict(list, {name: of for name, of in self.parts.items() if name not in stages})
        self._by_shard = defaultdict(
            list, {key: of for key, of in self._by_shard.items() if key[0] not in stages}
        )

    def commit(self, entry: PartEntry) -> None:
        self._append(_line(entry), entry.stage)

    def record(self, event: str, parts: Iterable[PartEntry] = (), **values: Any) -> None:
        """Append an event that is not a part: a pass's times, an output shard, a retry. Parts that
        stand or fall together are committed with it."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        together = [_line(entry) for entry in parts]
        self._append({"event": event, "at": at, **values, **({"parts": together} if together else {})}, event)

    def _append(self, line: dict[str, Any], place: str) -> None:
        reach(f"{place}.ledger.before")
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        start = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, start)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(self.path) from error
            raise
        reach(f"{place}.ledger.after")
        self._whole_bytes += len(data)
        self._take(json.loads(data))

    def rows(self, stage: str) -> int:
        return self._totals[stage, "rows"]

    def count(self, stage: str, name: str) -> int:
        return self._totals[stage, name]

    @property
    def cleaned(self) -> bool:
        """Whether `clean` removed the work files of the job, which was finished then."""
        return any(self.events_of("cleaned"))

    def counts(self, stage: str) -> dict[str, int]:
        return {name: count for (of, name), count in self._totals.items() if of == stage}

    def events_of(self, event: str) -> Iterator[dict[str, Any]]:
        return (line for line in self.events if line["event"] == event)

    def overlapping(self, stage: str, shard: str, first: int, end: int) -> list[str]:
        """Paths of the parts that may hold rows [first, end) of a shard."""
        entries = self.overlapping_entries(stage, shard, first, end)
        return [str(self.part_path(entry)) for entry in entries]

    def overlapping_entries(self, stage: str, shard: str, first: int, end: int) -> Iterator[PartEntry]:
        for entry in self._by_shard.get((stage, shard), ()):
            if entry.spans[shard].low < end and entry.spans[shard].high >= first:
                yield entry


def _line(entry: PartEntry) -> dict[str, Any]:
    spans = {shard: [span.rows, span.low, span.high] for shard, span in entry.spans.items()}
    return asdict(entry) | {"spans": spans}


def read_rows(paths: Iterable[str], shard: str, first: int, end: int, schema: pa.Schema) -> pa.Table:
    """Rows [first, end) of a shard from parts, in row order."""
    files = list(paths)
    if not files:
        return schema.empty_table()
    wanted = (pc.field("shard") == shard) & (pc.field("row") >= first) & (pc.field("row") < end)
    return ds.dataset(files, schema=schema).to_table(filter=wanted).sort_by("row")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a job folder: one process at a time. The lock goes with the process.

    Raises:
        OutputError: another process holds it; its host, process id and start are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner.json"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=_PATIENCE_S)  # a `report` may look for a moment whether it is held
    except Timeout:
        raise OutputError(f"{folder.parent}: another run holds this job ({_who(owner)})") from None
    try:
        owner.write_text(
            json.dumps(
                {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "since": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
        )
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _who(owner: Path) -> str:
    try:
        held = json.loads(owner.read_text())
        return f"process {held['pid']} on {held['host']}, since {held['since']}"
    except (OSError, ValueError, KeyError):
        return "its owner is not known yet"


def is_held(folder: Path) -> bool:
    """Whether a process holds the job; of a folder that cannot be locked, not as far as is known."""
    lock = FileLock(folder / "lock")
    if not (folder / "lock").exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
