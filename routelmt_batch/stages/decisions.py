"""The guard's decisions: which rows contend for the large model's places, and which rows get them.

Decisions are written as parts, committed together, and never made again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.checks.rules import CHECK_REASONS
from routelmt_batch.engines.lanes import Mask
from routelmt_batch.files.location import Location
from routelmt_batch.rows import (
    DECISIONS,
    ESCALATE,
    ESCALATED,
    FREED_PLACE,
    HYPOTHESIS_GOOD,
    LARGE,
    PREDICTED,
    PREDICTED_GOOD,
    ROUTE,
    SMALL,
)
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.attempts import attempts
from routelmt_batch.stages.check import reasons
from routelmt_batch.stages.measure import quality_by_row
from routelmt_batch.stages.passes import part_writer, record_time
from routelmt_batch.stages.planned import planned_rows
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.stats.selection import Cut, GainOrder, Gains, Parts, admitted
from routelmt_batch.store.ledger import PartEntry

_DECISION_ROWS = 65_536
_STEP = 1000.0


def decided(workspace: Job, step: str) -> bool:
    return any(event["step"] == step for event in workspace.ledger.events_of("guard"))


@dataclass(frozen=True)
class Contest:
    """Rows that contend for places: the highest values of `contenders` get them (NaN: does not contend)."""

    contenders: Callable[[UnitWork], npt.NDArray[np.float32]]
    # The decisions to commit, given the values of `contenders` and the rows that got a place.
    decisions: Callable[[UnitWork, npt.NDArray[np.float32], Mask], pa.Table]


def decide_routes(workspace: Job, plan: Plan, candidates: Cut | None) -> None:
    """Keep candidates small that the small model translates well; the next ones by gain get their places."""
    spec = workspace.spec.guard
    source, why = (PREDICTED, PREDICTED_GOOD) if spec.mode == "predicted" else (SMALL, HYPOTHESIS_GOOD)
    above = spec.keep_small_above
    assert above is not None

    def contenders(work: UnitWork) -> npt.NDArray[np.float32]:
        gains = planned_rows(work, None).gains
        good = quality_by_row(work, source) > above
        return np.where(admitted(candidates, gains) & ~good, gains.gain, np.float32(np.nan))

    def decisions(work: UnitWork, gain: npt.NDArray[np.float32], called: Mask) -> pa.Table:
        reason = np.where(called, FREED_PLACE, why)
        changed = called != planned_rows(work, plan.rule).large
        return _table(work, called, changed, reason, quality_by_row(work, source))

    _decide(workspace, ROUTE, plan.large, Contest(contenders, decisions))


def decide_escalations(workspace: Job, plan: Plan) -> None:
    """Give the places that were held back to the worst small translations."""
    below = workspace.spec.guard.escalate_below

    def contenders(work: UnitWork) -> npt.NDArray[np.float32]:
        planned = planned_rows(work, plan.rule)
        severity = _severities(work, below)
        return np.where(planned.called | planned.skipped, np.float32(np.nan), severity)

    def decisions(work: UnitWork, severity: npt.NDArray[np.float32], called: Mask) -> pa.Table:
        return _table(work, called, called, np.full(len(called), ESCALATED, object), severity)

    _decide(workspace, ESCALATE, plan.held_back, Contest(contenders, decisions))


def _decide(workspace: Job, step: str, places: int, contest: Contest) -> None:
    """Choose among the contenders and commit all decisions at once."""
    started = time.time()
    work = [work_on(workspace, unit) for unit in workspace.units]
    with _spilled(workspace.folder.work / DECISIONS.name, work, contest.contenders) as again:
        order = GainOrder(again)
        contenders = order.rows
        ((cut, *_),) = order.select([min(places, contenders)])

    def changes() -> Iterator[pa.Table]:
        for unit in work:
            values = contest.contenders(unit)
            yield contest.decisions(unit, values, admitted(cut, _gains(unit, values)))

    part = part_writer(workspace.ledger, DECISIONS)
    parts: list[PartEntry] = []
    to_large = to_small = 0
    for table in _batches(changes()):
        large = pc.sum(pc.equal(table["call"], LARGE)).as_py()
        to_large, to_small = to_large + large, to_small + table.num_rows - large
        parts.append(part(table))
    workspace.ledger.record(
        "guard",
        parts=parts,
        step=step,
        contenders=contenders,
        unfilled=max(0, places - contenders),
        to_large=to_large,
        to_small=to_small,
        escalated=to_large if step == ESCALATE else 0,
    )
    record_time(workspace.ledger, f"guard {step}", workspace.rows, started)


@contextlib.contextmanager
def _spilled(
    near: Location, work: Sequence[UnitWork], values: Callable[[UnitWork], npt.NDArray[np.float32]]
) -> Iterator[Parts]:
    """Keep the contenders on disk during the selection, which reads them twice."""
    schema = pa.schema([("gain", pa.float32()), ("rank", pa.int64()), ("row", pa.int64())])
    with (near / "contenders.arrow").draft() as path:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for unit in work:
                gains = _gains(unit, values(unit))
                inside = ~np.isnan(gains.gain)
                columns = [gains.gain[inside], gains.rank[inside], gains.row[inside]]
                writer.write_table(pa.table(columns, schema=schema))

        def again(keys: bool = True, ranks: Collection[int] | None = None) -> Iterator[Gains]:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                for index in range(reader.num_record_batches):
                    yield Gains(*(column.to_numpy() for column in reader.get_batch(index).columns))

        yield again


def _gains(work: UnitWork, values: npt.NDArray[np.float32]) -> Gains:
    rows = np.arange(work.unit.first_row, work.unit.end_row)
    return Gains(values.astype(np.float32), np.full(len(rows), work.rank), rows)


def _batches(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join tables into few larger ones that fit in memory; none of them is empty."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= _DECISION_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if any(part.num_rows for part in waiting):
        yield pa.concat_tables(waiting)


def _table(
    work: UnitWork, called: Mask, changed: Mask, reason: npt.NDArray[Any], value: npt.NDArray[Any]
) -> pa.Table:
    at = np.flatnonzero(changed)
    value = value[at].astype(np.float32)
    return pa.table(
        {
            "shard": [work.unit.shard.name] * len(at),
            "row": at + work.unit.first_row,
            "call": np.where(called, LARGE, SMALL)[at],
            "reason": reason[at],
            "value": pa.array(value, mask=np.isnan(value)),
        },
        schema=DECISIONS.schema,
    )


def _severities(work: UnitWork, below: float | None) -> npt.NDArray[np.float32]:
    """How much each row needs the large model after the small one, NaN if it does not. Failed rows come
    first, then those with more failed checks, then those with lower quality."""
    quality = quality_by_row(work, SMALL)
    low = quality < (np.nan if below is None else below)
    failed = np.array([len(slugs or ()) for slugs in reasons(work, SMALL)], float)
    state = attempts(work, np.zeros(work.unit.rows, bool))
    failed[state.failed[SMALL] & (state.translation[SMALL] < 0)] = len(CHECK_REASONS) + 1
    # Qualities span a few hundred points, so a step of a thousand orders by the number of failures first.
    severity = _STEP * failed - np.nan_to_num(quality)
    return np.where(low | (failed > 0), severity, np.nan).astype(np.float32)
