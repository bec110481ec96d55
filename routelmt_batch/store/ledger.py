"""A job's ledger: what its commit log says. Parts, their totals and events, in order.

Readers trust the ledger, never a folder listing: a part that it does not name does not exist.
It holds names, row ranges and counts, but no row's contents.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from routelmt_batch.errors import Interrupted, OutputError, RoutelmtError, WorkChanged
from routelmt_batch.failpoints import reach
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import read_parquet
from routelmt_batch.rows import STAGES, UNTRANSLATABLE, Stage
from routelmt_batch.store.log import LEASE_S, SIGN_OF_LIFE_S, Fence, Log, TakenOver

# Commits of a moment travel together: after this many seconds, or so many of them.
_GROUP_S = 1.0
_GROUP = 256
_LOOK_S = 0.5
_OF_LOG = ("epoch", "alive", "released")


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

    def __init__(self, work: Location) -> None:
        self.folder = work
        self.log = Log(work / "log")
        self._parts: dict[str, list[PartEntry]] = defaultdict(list)
        self.events: list[dict[str, Any]] = []
        self._by_shard: dict[tuple[str, str], list[PartEntry]] = defaultdict(list)
        self._totals: dict[tuple[str, str | None], Totals] = defaultdict(Totals)
        self.generation = 0  # the number of runs with `--retry-failed` so far
        self.folded_rows = 0  # rows that follow another row with the same text and languages
        self._lock = threading.RLock()
        self._waiting: list[tuple[str, dict[str, Any]]] = []  # records, each with its failpoint
        self._written_at = 0.0
        self._failure: Exception | None = None
        self.catch_up()

    @property
    def epoch(self) -> int:
        """The number of this run among those that wrote the job; 0 if it has written nothing."""
        return self.log.epoch

    def catch_up(self) -> None:
        """Read what was committed since the last call."""
        for line in self.log.read():
            self._take(line)

    def refresh(self) -> None:
        """Make sure that this run knows all that was committed.

        Raises:
            TakenOver: this run wrote the job, and another has taken it.
            OutputError: this run has written nothing yet, and another worked on the job meanwhile.
        """
        with self._lock:
            if self._failure:
                raise self._failure
            if self.epoch:
                self.check()
                return
            seen = self.log.next
            self.catch_up()
            if self.log.last and self.log.next > seen:
                raise OutputError(
                    f"{self.folder.parent}: another run worked on this job meanwhile "
                    f"({self.log.last.writer}). Run the same command again, when that run has ended"
                )

    @contextlib.contextmanager
    def writing(self, tell: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Commit inside; the first commit takes the job, and the end gives it back.

        Raises:
            OutputError: another process holds the job; the message names it.
            TakenOver: another process took it meanwhile.
        """
        self._refuse_if_held(tell)
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(ended, _can_interrupt()), daemon=True)
        keeper.start()
        try:
            try:
                yield
                self.refresh()
            except Exception:
                self._look_for_another()
                raise
            finally:
                ended.set()
                keeper.join()
                self._release()
        except (Exception, Interrupted, KeyboardInterrupt) as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)  # maybe by the keeper
            if self._failure and (stopped or isinstance(self._failure, TakenOver)):
                raise self._failure from None
            raise

    def _look_for_another(self) -> None:
        """After an error: it may be because another run took the job, and swept what this one had written."""
        if self.epoch and self._failure is None:
            with contextlib.suppress(Exception):  # the error itself is told
                self.check()

    def _release(self) -> None:
        """End this run's commits. If even that cannot be written, the next run finds this process ended."""
        if self.epoch:
            if self._failure is None:
                with contextlib.suppress(RoutelmtError, OSError):
                    self.flush()
                    self.log.release()
            self.log.close()

    def _refuse_if_held(self, tell: Callable[[str], None]) -> None:
        """Await a sign of life of the job's last writer: the clocks of two hosts are not compared."""
        if not self.log.writer:
            return
        tell(f"waiting up to {LEASE_S:.0f} s for a sign of life of {self.log.writer}, which holds this job")
        seen, until = self.log.next, time.monotonic() + LEASE_S
        while (writer := self.log.writer) and time.monotonic() < until:
            if self.log.next > seen:
                raise OutputError(f"{self.folder.parent}: another run holds this job ({writer})")
            time.sleep(_LOOK_S)
            self.catch_up()

    def take(self) -> None:
        """Make this process the job's writer, if it is not yet.

        Raises:
            TakenOver: it was, and another process has taken the job since.
        """
        with self._lock:
            if self._failure:
                raise self._failure
            if self.epoch:
                return
            try:
                self.log.check_complete()
                self.log.take()
            except Exception as error:
                self._failure = error
                raise
            self._written_at = time.monotonic()

    def _keep(self, ended: threading.Event, may_interrupt: bool) -> None:
        """Write what waits, and signs of life, until the job ends. A failure stops the main thread."""
        while not ended.wait(_GROUP_S) and self._failure is None:
            try:
                with self._lock:
                    idle = time.monotonic() - self._written_at > SIGN_OF_LIFE_S
                    if self._waiting:
                        self.flush()
                    elif self.epoch and idle:
                        self._add([{"event": "alive"}])
            except Exception as error:
                self._failure = error
                if may_interrupt and callable(signal.getsignal(signal.SIGINT)) and not ended.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def check_parts(self) -> None:
        """Raises WorkChanged if a committed part is missing or of another size. Its contents are checked when
        it is read."""
        for stage, entries in self._parts.items():
            sizes = (self.folder / stage).sizes() if entries else {}
            for entry in entries:
                if sizes.get(entry.part) == entry.bytes:
                    continue
                stat = self.part_path(entry).stat()  # a list may be late
                if stat is None or stat.bytes != entry.bytes:
                    raise WorkChanged(
                        f"{self.part_path(entry)}: {'has another size now' if stat else 'is missing'}; "
                        f"{entry.rows} rows of {entry.stage.name} were committed in it. Restore it, or "
                        "start a new job with another --output. `routelmt-batch verify` says what else is "
                        "damaged"
                    )

    def read(self, entry: PartEntry, columns: list[str] | None = None) -> pa.Table:
        """The rows of a committed part. See files.parquet.read_parquet."""
        return read_parquet(self.part_path(entry), entry.sha256, columns)

    def sweep(self) -> None:
        """Remove what a crash left: parts of earlier runs that were written and never committed."""
        if not any(self.unnamed().values()):
            return
        self.take()
        for path in (path for paths in self.unnamed().values() for path in paths):
            reach("sweep")
            path.remove()

    def unnamed(self, leaving_out: Collection[Stage] = ()) -> dict[str, list[Location]]:
        """Parts of earlier runs that the ledger does not name, by stage; every part of the stages in
        `leaving_out`. Parts of a later run are never among them: this process may have been replaced."""
        of_writer = self.log.last.epoch if self.log.last and self.log.writer else math.inf
        epoch = self.epoch or of_writer
        names = {
            name: {entry.part for entry in self._parts[name] if stage not in leaving_out}
            for name, stage in STAGES.items()
        }
        return {
            stage: sorted(
                (
                    path
                    for path in (self.folder / stage).below()
                    if path.name not in names[stage] and _epoch_of(path.name) < epoch
                ),
                key=str,
            )
            for stage in STAGES
        }

    def part_path(self, entry: PartEntry) -> Location:
        return self.folder / entry.stage.name / entry.part

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("event") in _OF_LOG:
            return
        if "part" in line:
            entry = PartEntry.read(line)
            self._hold(entry)
            self._totals[entry.stage.name, entry.model].add(entry)
            return
        self.events.append(line)
        self.generation += line["event"] == "retry_failed"
        self.folded_rows += line["folded"] if line["event"] == "fold" else 0
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
        """Commit a part; it is durable within a second, and after `flush`."""
        self._append(entry.as_json(), entry.stage.name)

    def record(self, event: str, parts: Iterable[PartEntry] = (), now: bool = True, **values: Any) -> None:
        """Add an event that is not a part: a pass's times, an output shard, a retry. `parts` are committed
        with it, all or none. It is durable on return if `now`, else as a part is."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        together = [entry.as_json() for entry in parts]
        self._append({"event": event, "at": at, **values, **({"parts": together} if together else {})}, event)
        if now:
            self.flush()

    def _append(self, line: dict[str, Any], failpoint: str) -> None:
        reach(f"{failpoint}.ledger.before")
        line = json.loads(json.dumps(line))
        with self._lock:
            self.take()
            self._waiting.append((failpoint, line))
            self._take(line)
            if len(self._waiting) >= _GROUP:
                self.flush()

    def flush(self) -> None:
        """Make every commit so far durable."""
        with self._lock:
            if self._failure:
                raise self._failure
            if not self._waiting:
                return
            waiting = list(self._waiting)
            self._add([line for _, line in waiting])
            del self._waiting[: len(waiting)]
            for failpoint, _ in waiting:
                reach(f"{failpoint}.ledger.after")

    def _add(self, lines: Sequence[dict[str, Any]]) -> None:
        try:
            self.log.add(lines)
        except Exception as error:
            self._failure = error  # no later commit may succeed after one that did not
            raise
        self._written_at = time.monotonic()

    def check(self) -> None:
        """Make every commit so far durable, and this process the job's writer if it is not yet.

        Raises:
            TakenOver: another process has taken the job.
        """
        with self._lock:
            self.take()
            self.flush()
            try:
                self.log.check()
            except TakenOver as error:
                self._failure = error
                raise

    def fence(self) -> Fence:
        """A check for other processes: see log.Fence. Every commit so far is made durable first."""
        self.check()
        return Fence(self.log)

    @property
    def has_parts(self) -> bool:
        """Whether anything was ever committed, `clean` or not."""
        return bool(self._totals)

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


def _can_interrupt() -> bool:
    """Whether a signal to the main thread reaches whoever calls this."""
    return threading.current_thread() is threading.main_thread()


def _epoch_of(part: str) -> float:
    """The epoch in a part's name (see passes.PartWriter); infinite if it is no part's name."""
    found = re.fullmatch(r"\.?\w+-(\d{6,})-.*", part)
    return int(found[1]) if found else math.inf
