"""A unit with what is committed of it: where the plan and the guard send its rows, who has tried them.

The one join of scores, decisions and translations; every later stage reads rows through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.rows import DECISIONS, LARGE
from routelmt_batch.rows import SCORES as SCHEMA
from routelmt_batch.stages.allocate import admitted, gain_of, is_skipped
from routelmt_batch.stages.attempts import Mask, generations
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stats.selection import Cut, Gains
from routelmt_batch.store.ledger import CHECKS, GUARD, QUALITY, SCORES, read_rows


@dataclass(frozen=True)
class Work:
    """A unit, and the paths of the committed parts that may hold its rows."""

    unit: Unit
    rank: int
    scores: tuple[str, ...]
    decisions: tuple[str, ...]
    committed: tuple[tuple[str, ...], ...]  # translations, by the retries before them
    quality: tuple[str, ...]
    checks: tuple[str, ...]

    @property
    def translations(self) -> tuple[str, ...]:
        return tuple(path for paths in self.committed for path in paths)


def work_on(workspace: Job, unit: Unit) -> Work:
    ledger, shard = workspace.ledger, unit.shard.name
    scores, decisions, quality, checks = (
        tuple(ledger.overlapping(stage, shard, unit.first_row, unit.end_row))
        for stage in (SCORES, GUARD, QUALITY, CHECKS)
    )
    committed = generations(ledger, unit)
    return Work(unit, workspace.ranks[shard], scores, decisions, committed, quality, checks)


@dataclass(frozen=True)
class PlannedRows:
    """A unit's rows in row order: their scores, where the plan sends them, and which of them the
    large model is called for, after the guard; `reason` is the guard's."""

    scores: pa.Table
    gains: Gains
    large: Mask
    called: Mask
    skipped: Mask
    reason: npt.NDArray[np.object_]


def planned_rows(work: Work, cut: Cut | None) -> PlannedRows:
    """Raises RoutelmtError if the committed scores do not hold each row of the unit once."""
    unit, name = work.unit, work.unit.shard.name
    scores = read_rows(work.scores, name, unit.first_row, unit.end_row, SCHEMA)
    rows = scores["row"].to_numpy()
    if not np.array_equal(rows, np.arange(unit.first_row, unit.end_row)):
        raise RoutelmtError(f"{name}: rows {unit.first_row} to {unit.end_row} are not scored once each")
    gains = Gains(gain_of(scores), np.full(len(rows), work.rank, np.int64), rows)
    large = admitted(cut, gains)
    called, reason = large.copy(), np.full(len(rows), None, object)
    decided = read_rows(work.decisions, name, unit.first_row, unit.end_row, DECISIONS)
    to_large = pc.equal(decided["call"], LARGE).to_numpy().astype(bool)
    # What stays small may be escalated later: the call to the large model is the last word.
    for mask, call in ((~to_large, False), (to_large, True)):
        places = decided["row"].to_numpy()[mask] - unit.first_row
        called[places] = call
        reason[places] = decided["reason"].to_numpy(zero_copy_only=False)[mask]
    return PlannedRows(scores, gains, large, called, is_skipped(scores), reason)
