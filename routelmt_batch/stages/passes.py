"""A pass: lanes through the engine, each part committed as it arrives, times recorded."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.atomic import sha256, write_parquet
from routelmt_batch.engines.lanes import Engine, Lane, Receipt
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.progress import Bars, counted
from routelmt_batch.rows import ENGINE_KILLED, Route, Stage
from routelmt_batch.store.ledger import Ledger, PartEntry, Span
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Stop, each

# How long before a pass's end the next one's engines are started. A large engine takes about that long;
# started earlier it would hold GPUs that do nothing.
_AHEAD_S = 120.0
_ALWAYS_ALLOWED = 10


@dataclass(frozen=True)
class PartWriter:
    """Commits one part of a stage below `folder` and returns its entry for the ledger. `model` is the one
    whose rows they are, if they are of one."""

    folder: Path
    stage: Stage
    model: str | None = None
    generation: int = 0

    def __call__(self, table: pa.Table, results: pa.Table | None = None) -> PartEntry:
        """Args: results: RESULTS that the table was made of, if it was, for the stage's sums."""
        name = f"{self.model or 'part'}-{uuid.uuid4().hex}.parquet"
        path = self.folder / self.stage.name / name
        table = table.sort_by([("shard", "ascending"), ("row", "ascending")])
        write_parquet(path, table, self.stage.name)
        return PartEntry(
            self.stage,
            self.model,
            name,
            path.stat().st_size,
            sha256(path),
            spans(table),
            unanswered(table, self.stage),
            {} if results is None else sums(results, self.stage),
            self.generation,
        )


def unanswered(table: pa.Table, stage: Stage) -> dict[str, int]:
    """Rows without an answer, by reason."""
    if stage.answer is None:
        return {}
    missing = table.filter(pc.is_null(table[stage.answer], nan_is_null=True))["reason"]
    return {line["values"]: line["counts"] for line in missing.value_counts().to_pylist()}


def sums(results: pa.Table, stage: Stage) -> dict[str, int]:
    """A stage's sums over the RESULTS that an engine gave."""
    given = results.filter(pc.field("skip") == "")
    return {name: pc.sum(given[name]).as_py() or 0 for name in stage.sums}


def spans(table: pa.Table) -> dict[str, Span]:
    ranges = table.group_by("shard").aggregate([("row", "count"), ("row", "min"), ("row", "max")])
    return {
        line["shard"]: Span(line["row_count"], line["row_min"], line["row_max"])
        for line in ranges.to_pylist()
    }


@dataclass
class LaneTime:
    """What one lane of a pass committed: rows, by which engines, when the first of them was started and
    ready, when the last part was there."""

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
    """Run lanes as one pass over their pending rows, if there are any, and commit parts as they come.

    Args:
        name: of the pass; `{lanes}` and `{models}` in it are those of the lanes that have something to do.
        before_commit, after_commit: may end the job; a part that the first refuses is not committed.
        upcoming: lanes of the next pass, as far as they are known; their engines start towards this one's
            end, where there is room.
    """
    lanes, pending = _with_pending_rows(lanes)
    if not lanes:
        return
    name = name.format(
        lanes="+".join(lane.label for lane in lanes), models="+".join(str(lane.model) for lane in lanes)
    )
    done = sum(workspace.ledger.rows(lane.stage, lane.model) for lane in lanes)
    started = time.time()
    lane_times: defaultdict[str, LaneTime] = defaultdict(LaneTime)
    try:
        with bars.rows(name, done + pending, done) as advance:
            for receipt in engine.run(lanes, bars.say):
                entry: PartEntry = receipt.part
                before_commit(entry)
                if killed := entry.unanswered.get(ENGINE_KILLED):
                    _refuse_killers(workspace, entry)
                    bars.warn(f"{name}: {counted(killed, 'row')} killed the engine: {ENGINE_KILLED}")
                workspace.ledger.commit(entry)
                lane_times[receipt.lane].take(receipt)
                advance(entry.rows)
                after_commit()
                if upcoming and _seconds_left(lane_times, pending) < _AHEAD_S:
                    engine.start_ahead(upcoming(), lanes)
                    upcoming = None
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


def _seconds_left(lanes: Mapping[str, LaneTime], total: int) -> float:
    """How long a pass goes on, at the speed that it had so far."""
    rows = sum(lane.rows for lane in lanes.values())
    took = time.time() - min(lane.ready_at for lane in lanes.values())
    return took * (total - rows) / max(rows, 1)


def _refuse_killers(workspace: AnyWorkspace, entry: PartEntry) -> None:
    """Bound what is spent on finding them, ten engine starts or so each; also on those that the small
    model then translates, which are no failures. Each model's count by itself, and each try's.

    Raises:
        RoutelmtError: see refuse_failures.
    """
    of = (entry.model, entry.generation)
    before = [part for part in workspace.ledger.parts(entry.stage) if (part.model, part.generation) == of]
    killed = sum(part.unanswered.get(ENGINE_KILLED, 0) for part in (*before, entry))
    if killed > _ALWAYS_ALLOWED:
        refuse_failures(workspace, killed, "an engine died of")


def _with_pending_rows(lanes: Sequence[Lane]) -> tuple[list[Lane], int]:
    """The lanes with the units that have pending rows, and how many rows those are. Rows alone say what is
    pending."""
    found, total = [], 0
    for lane in lanes:

        def rows(unit: Any, stop: Stop, lane: Lane = lane) -> int:
            return int(lane.pending.wanted(unit).sum())

        with each(rows, lane.units) as counts:
            units = [(unit, count) for unit, count in zip(lane.units, counts, strict=True) if count]
        if units:
            found.append(replace(lane, units=[unit for unit, _ in units]))
            total += sum(count for _, count in units)
    return found, total


def refuse_failures(workspace: AnyWorkspace, failed: int, told: str) -> None:
    """Asked before a part is committed: what it would break the limit with is then tried again.

    Raises:
        RoutelmtError: `failed` rows are more than `run.max_failed_fraction` allows; `told` says of what.
    """
    allowed = workspace.spec.run.max_failed_fraction
    if failed > allowed * workspace.rows:
        raise RoutelmtError(
            f"{told} {failed} of {workspace.rows} rows, more than run.max_failed_fraction {allowed} allows. "
            f"Look into {workspace.folder.logs}; after mending, run the same command again"
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
    """Put a pass's time into the ledger, and each lane's own; a resumed pass has a line for each run.

    Args:
        engine_start_seconds: of the pass, until its first engine was ready.
        started_ahead_seconds: how long engines started before the pass began.
        gpus: its pools', by label: each run may have its own.
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
