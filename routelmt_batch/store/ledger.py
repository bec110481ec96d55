"""A job's ledger of committed work, an append-only file of JSON lines; and the lock on a job's folder.

Readers trust the ledger, never a folder listing: a part that it does not name does not exist.
It holds names, row ranges and counts, but no row's contents.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from routelmt_batch.atomic import disk_full, sha256
from routelmt_batch.errors import OutputError, WorkChanged
from routelmt_batch.failpoints import reach
from routelmt_batch.rows import STAGES, UNTRANSLATABLE, Stage

_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Span:
    """Rows of one shard in one part: how many, the lowest and the highest."""

    rows: int
    low: int
    high: int


@dataclass(frozen=True)
class PartEntry:
    """One committed part of a stage.

    Args:
        model: the model of its rows, if the stage keeps models apart.
        spans: by shard.
        unanswered: rows without an answer, by reason.
        sums: see Stage.
        generation: the number of runs with `--retry-failed` before it.
    """

    stage: Stage
    model: str | None
    part: str
    bytes: int
    sha256: str
    spans: Mapping[str, Span]
    unanswered: Mapping[str, int] = field(default_factory=dict)
    sums: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans.values())

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> PartEntry:
        spans = {shard: Span(*span) for shard, span in line["spans"].items()}
        return cls(**{**line, "stage": STAGES[line["stage"]], "spans": spans})

    def as_json(self) -> dict[str, Any]:
        spans = {shard: [span.rows, span.low, span.high] for shard, span in self.spans.items()}
        return {**vars(self), "stage": self.stage.name, "spans": spans}


@dataclass
class Totals:
    """Totals of committed parts: rows, rows without an answer by reason, and sums."""

    rows: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        return self.rows - self.unanswered.total()

    @property
    def failed(self) -> int:
        """Rows that an engine was given and did not answer."""
        return sum(rows for reason, rows in self.unanswered.items() if reason not in UNTRANSLATABLE)

    def add(self, part: PartEntry | Totals) -> None:
        self.rows += part.rows
        self.unanswered.update(part.unanswered)
        self.sums.update(part.sums)


class Ledger:
    """The commits of one job, in order. One process writes; any may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent
        self._parts: dict[str, list[PartEntry]] = defaultdict(list)
        self.events: list[dict[str, Any]] = []
        self._by_shard: dict[tuple[str, str], list[PartEntry]] = defaultdict(list)
        self._totals: dict[tuple[str, str | None], Totals] = defaultdict(Totals)
        self._whole_bytes = 0
        self.generation = 0  # the number of runs with `--retry-failed` so far
        self.catch_up()

    def catch_up(self) -> None:
        """Read what was committed since the last call."""
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
        for entries in self._parts.values():
            for entry in entries:
                path = self.part_path(entry)
                if not path.exists() or sha256(path) != entry.sha256:
                    raise WorkChanged(
                        f"{path}: was committed, but is now missing or has other contents. Restore "
                        "it, or start a new job with another --output"
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

    def unnamed(self, leaving_out: Collection[Stage] = ()) -> dict[str, list[Path]]:
        """Files that the ledger does not name, by stage; every file of the stages in `leaving_out`."""
        names = {
            name: {entry.part for entry in self._parts[name] if stage not in leaving_out}
            for name, stage in STAGES.items()
        }
        return {
            stage: [path for path in sorted((self.folder / stage).glob("*")) if path.name not in names[stage]]
            for stage in STAGES
        }

    def part_path(self, entry: PartEntry) -> Path:
        return self.folder / entry.stage.name / entry.part

    def _take(self, line: dict[str, Any]) -> None:
        if "part" in line:
            entry = PartEntry.read(line)
            self._hold(entry)
            self._totals[entry.stage.name, entry.model].add(entry)
            return
        self.events.append(line)
        self.generation += line["event"] == "retry_failed"
        cleared = line.get("cleared", ())
        if cleared:
            self._forget(cleared)
        for part in map(PartEntry.read, line.get("parts", ())):
            self._hold(part)
            if not cleared:  # else its rows are already counted
                self._totals[part.stage.name, part.model].add(part)

    def _hold(self, entry: PartEntry) -> None:
        self._parts[entry.stage.name].append(entry)
        for shard in entry.spans:
            self._by_shard[entry.stage.name, shard].append(entry)

    def _forget(self, stages: Collection[str]) -> None:
        """Forget the parts of some stages, but keep their totals."""
        for stage in stages:
            self._parts.pop(stage, None)
        for key in [key for key in self._by_shard if key[0] in stages]:
            del self._by_shard[key]

    def commit(self, entry: PartEntry) -> None:
        self._append(entry.as_json(), entry.stage.name)

    def record(self, event: str, parts: Iterable[PartEntry] = (), **values: Any) -> None:
        """Append an event that is not a part: a pass's times, an output shard, a retry. `parts`
        are committed with it, all or none."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        together = [entry.as_json() for entry in parts]
        self._append({"event": event, "at": at, **values, **({"parts": together} if together else {})}, event)

    def _append(self, line: dict[str, Any], failpoint: str) -> None:
        reach(f"{failpoint}.ledger.before")
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
        reach(f"{failpoint}.ledger.after")
        self._whole_bytes += len(data)
        self._take(json.loads(data))

    def parts(self, stage: Stage) -> Sequence[PartEntry]:
        return self._parts[stage.name]

    def totals(self, stage: Stage, model: str | None = None) -> Totals:
        """Totals of a stage's parts, of all models or of one."""
        whole = Totals()
        for (name, part_model), totals in self._totals.items():
            if name == stage.name and model in (None, part_model):
                whole.add(totals)
        return whole

    def rows(self, stage: Stage, model: str | None = None) -> int:
        return self.totals(stage, model).rows

    @property
    def cleaned(self) -> bool:
        """Whether `clean` removed the work files of the job after it had finished."""
        return any(self.events_of("cleaned"))

    def events_of(self, event: str) -> Iterator[dict[str, Any]]:
        return (line for line in self.events if line["event"] == event)

    def overlapping(self, stage: Stage, shard: str, first: int, end: int) -> Iterator[PartEntry]:
        """The parts that may hold rows [first, end) of a shard."""
        for entry in self._by_shard.get((stage.name, shard), ()):
            if entry.spans[shard].low < end and entry.spans[shard].high >= first:
                yield entry


@contextlib.contextmanager
def lock_job(folder: Path) -> Iterator[None]:
    """Lock a job folder for one process at a time. The lock ends with the process.

    Raises:
        OutputError: another process holds it; the message names its host, process id and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner.json"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=_PATIENCE_S)  # `report` takes it for a moment to see whether it is free
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


def is_locked(folder: Path) -> bool:
    """Whether a process holds the job. A folder that cannot be locked counts as free."""
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
