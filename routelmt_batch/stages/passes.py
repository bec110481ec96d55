"""A pass: it runs lanes through the engine, commits each part as it arrives, and records times."""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import groups
from routelmt_batch.engines.lanes import Engine, Lane, Pending, Receipt
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.files.location import Location
from routelmt_batch.files.write import write_parquet
from routelmt_batch.progress import Bars, counted
from routelmt_batch.rows import ENGINE_KILLED, Route, Stage
from routelmt_batch.stages.work import UnitWork, refreshed
from routelmt_batch.store.ledger import Ledger, PartEntry, Span
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Stop

# The next pass's engines are started this long before a pass ends. A large engine takes about as long to
# start; if it were started earlier, it would keep GPUs idle.
_AHEAD_S = 120.0
_ALWAYS_ALLOWED = 10  # rows that kill an engine


@dataclass(frozen=True)
class PartWriter:
    """Writes one part of a stage below `folder` and returns its entry for the ledger. `model` is given if all
    rows are one model's. Each attempt has a name of its own; the epoch in it says which run wrote it."""

    folder: Location
    stage: Stage
    epoch: int
    model: str | None = None
    generation: int = 0

    def __call__(self, table: pa.Table, results: pa.Table | None = None) -> PartEntry:
        """Args: results: the RESULTS that the table was made from, if any; the stage's sums need them."""
        name = f"{self.model or 'part'}-{self.epoch:06d}-{uuid.uuid4().hex}.parquet"
        path = self.folder / self.stage.name / name
        table = table.sort_by([("shard", "ascending"), ("row", "ascending")])
        written = write_parquet(path, table, self.stage.name)
        return PartEntry(
            self.stage,
            self.model,
            name,
            *written,
            spans(table),
            unanswered(table, self.stage),
            {} if results is None else sums(results, self.stage),
            self.generation,
        )


def part_writer(ledger: Ledger, stage: Stage, model: str | None = None, generation: int = 0) -> PartWriter:
    """The writer of a stage's parts, for the run that writes this ledger."""
    ledger.take()
    return PartWriter(ledger.folder, stage, ledger.epoch, model, generation)


def unanswered(table: pa.Table, stage: Stage) -> dict[str, int]:
    """Number of rows without an answer, by reason."""
    if stage.answer is None:
        return {}
    missing = table.filter(pc.is_null(table[stage.answer], nan_is_null=True))["reason"]
    return {line["values"]: line["counts"] for line in missing.value_counts().to_pylist()}


def sums(results: pa.Table, stage: Stage) -> dict[str, int]:
    """A stage's sums over the RESULTS of rows that an engine received."""
    sent = results.filter(pc.field("skip") == "")
    return {name: pc.sum(sent[name]).as_py() or 0 for name in stage.sums}


def spans(table: pa.Table) -> dict[str, Span]:
    ranges = table.group_by("shard").aggregate([("row", "count"), ("row", "min"), ("row", "max")])
    return {
        line["shard"]: Span(line["row_count"], line["row_min"], line["row_max"])
        for line in ranges.to_pylist()
    }


@dataclass
class LaneTime:
    """What one lane of a pass committed: its rows, the engines that answered, when the first engine started
    and was ready, and when the last part arrived."""

    rows: int = 0
    engines: set[str] = field(default_factory=set)
    started_at: float = float("inf")
    ready_at: float = float("inf")
    done_at: float = 0.0

    def take(self, receipt: Receipt) -> None:
        self.rows += receipt.part.rows
        self.engines.add(receipt.engine)
        self.started_at = min(self.started_at, receipt.started_at)
        self.ready_at = min(self.ready_at, receipt.ready_at)
        self.done_at = time.time()


def run_pass(
    workspace: AnyWorkspace,
    engine: Engine,
    bars: Bars,
    lanes: Sequence[Lane],
    name: str = "{lanes}",
    before_commit: Callable[[PartEntry], None] = lambda entry: None,
    after_commit: Callable[[], None] = lambda: None,
    upcoming: Callable[[], Sequence[Lane]] | None = None,
) -> None:
    """Run lanes as one pass over their pending rows, if there are any, and commit parts as they arrive.

    A part with a lost receipt does not count: its rows are processed again.

    Args:
        name: the pass's name; `{lanes}` and `{models}` in it stand for the lanes that have pending rows.
        before_commit, after_commit: may end the job; a part that `before_commit` refuses is not committed.
        upcoming: gives the next pass's lanes; their engines start shortly before this pass ends, if there
            is room.
    """
    lanes, pending = _with_pending_rows(lanes, engine)
    if not lanes:
        return
    name = name.format(
        lanes="+".join(lane.label for lane in lanes), models="+".join(str(lane.model) for lane in lanes)
    )
    done = sum(workspace.ledger.rows(lane.stage, lane.model) for lane in lanes)
    started = time.time()
    lane_times: defaultdict[str, LaneTime] = defaultdict(LaneTime)
    left, left_before = pending, pending + 1
    try:
        with bars.rows(name, done + pending, done) as advance:
            while 0 < left < left_before:
                left_before = left
                for receipt in _complete(engine.run(lanes, bars.say)):
                    entry: PartEntry = receipt.part
                    before_commit(entry)
                    if killed := entry.unanswered.get(ENGINE_KILLED):
                        _refuse_killers(workspace, entry)
                        bars.warn(f"{name}: {counted(killed, 'row')} killed the engine: {ENGINE_KILLED}")
                    workspace.ledger.commit(entry)
                    lane_times[receipt.lane].take(receipt)
                    advance(entry.rows)
                    left -= entry.rows
                    after_commit()
                    if upcoming and _seconds_left(lane_times, pending) < _AHEAD_S:
                        engine.start_ahead(upcoming(), lanes)
                        upcoming = None
                if left > 0:
                    lanes, left = _with_pending_rows([_again(workspace, lane) for lane in lanes], engine)
        if left > 0:
            raise RoutelmtError(
                f"{name}: {counted(left, 'row')} came back from no engine, twice. Nothing is lost: look for "
                f"the cause in {workspace.folder.logs}, and run the same command again"
            )
    finally:
        ready = min((lane.ready_at for lane in lane_times.values()), default=time.time())
        ahead = [min(lane.ready_at, started) - lane.started_at for lane in lane_times.values()]
        rows = sum(lane.rows for lane in lane_times.values())
        gpus = {
            lane.label: len(lane_times[lane.label].engines) * (lane.pool.gpus or lane.pool.gpus_of_model)
            for lane in lanes
            if lane.label in lane_times
        }
        times = (max(0.0, ready - started), max([0.0, *ahead]))
        of = {lane.label: (lane.stage.name, lane.model) for lane in lanes}
        record_time(workspace.ledger, name, rows, started, *times, lane_times, gpus, of)


def _complete(receipts: Iterable[Receipt]) -> Iterator[Receipt]:
    """One receipt of each part whose receipts have all come."""
    come: Counter[str] = Counter()
    for receipt in receipts:
        part: PartEntry = receipt.part
        come[part.part] += 1
        if come[part.part] == receipt.of:
            del come[part.part]
            yield receipt


def _again(workspace: AnyWorkspace, lane: Lane) -> Lane:
    """A lane whose units know what is committed now."""
    return replace(lane, units=[refreshed(workspace, work) for work in lane.units])


def _seconds_left(lanes: Mapping[str, LaneTime], total: int) -> float:
    """How long a pass will still take at its speed so far."""
    rows = sum(lane.rows for lane in lanes.values())
    took = time.time() - min(lane.ready_at for lane in lanes.values())
    return took * (total - rows) / max(rows, 1)


def _refuse_killers(workspace: AnyWorkspace, entry: PartEntry) -> None:
    """End the job if too many rows kill an engine, because each costs about twelve engine starts to find. The
    small model may still translate them, so they are not failures. Each model and each try has its own count.

    Raises:
        RoutelmtError: see refuse_failures.
    """
    of = (entry.model, entry.generation)
    before = [part for part in workspace.ledger.parts(entry.stage) if (part.model, part.generation) == of]
    killed = sum(part.unanswered.get(ENGINE_KILLED, 0) for part in (*before, entry))
    if killed > _ALWAYS_ALLOWED:
        refuse_failures(workspace, killed, "an engine died of")


def _with_pending_rows(lanes: Sequence[Lane], engine: Engine) -> tuple[list[Lane], int]:
    """The lanes that have pending rows, each with its units that have some, and the number of these rows."""
    busy, total = [], 0
    for lane in lanes:
        units: list[UnitWork] = []
        together = list(groups(lane.units, lambda work: work.unit))
        with engine.each(_Counting(lane.pending), together) as counted:
            for group, counts in zip(together, counted, strict=True):
                units += [work for work, rows in zip(group, counts, strict=True) if rows]
                total += sum(counts)
        if units:
            busy.append(replace(lane, units=units))
    return busy, total


@dataclass(frozen=True)
class _Counting:
    """Counts the pending rows of units, in a task."""

    pending: Pending

    def __call__(self, units: Sequence[UnitWork], stop: Stop) -> list[int]:
        counts = []
        for work in units:
            stop()
            counts.append(int(self.pending.wanted(work).sum()))
        return counts


def refuse_failures(workspace: AnyWorkspace, failed: int, problem: str) -> None:
    """End the job before it commits a part that exceeds the limit; the part's rows are then tried again.

    Raises:
        RoutelmtError: `failed` rows are more than `run.max_failed_fraction` allows. `problem` begins the
            message: what happened to the rows.
    """
    allowed = workspace.spec.run.max_failed_fraction
    if failed > allowed * workspace.calls:
        raise RoutelmtError(
            f"{problem} {failed} of {workspace.calls} rows, more than run.max_failed_fraction {allowed} "
            f"allows. Find the cause in {workspace.folder.logs}, fix it, and run the same command again"
        )


def record_time(
    ledger: Ledger,
    name: str,
    rows: int,
    started: float,
    engine_start_seconds: float = 0.0,
    started_ahead_seconds: float = 0.0,
    lanes: Mapping[str, LaneTime] | None = None,
    gpus: Mapping[str, int] | None = None,
    of: Mapping[str, tuple[str, Route | None]] | None = None,
) -> None:
    """Record the times of a pass and its lanes in the ledger; a resumed pass has one line for each run.

    Args:
        engine_start_seconds: from the pass's start until its first engine was ready.
        started_ahead_seconds: how long engines had been starting before the pass began.
        gpus: GPUs of each pool, by lane label; they may differ between runs.
        of: stage and model of each lane, by label.
    """
    ledger.record(
        "pass",
        name=name,
        rows=rows,
        seconds=round(time.time() - started, 3),
        engine_start_seconds=round(engine_start_seconds, 3),
        started_ahead_seconds=round(started_ahead_seconds, 3),
        lanes={
            name: {
                "rows": lane.rows,
                "seconds": round(lane.done_at - lane.ready_at, 3),
                **dict(zip(("stage", "model"), (of or {})[name], strict=True)),
            }
            for name, lane in (lanes or {}).items()
        },
        gpus=dict(gpus or {}),
    )
