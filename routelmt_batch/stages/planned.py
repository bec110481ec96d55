"""Which model the plan and the guard send each row of a unit to: its scores joined with the decisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import Mask
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.rows import DECISIONS, LARGE, SCORES
from routelmt_batch.stages.gains import Rule, gain_of, is_skipped, total_gain
from routelmt_batch.stages.work import UnitWork
from routelmt_batch.stats.selection import Gains


@dataclass(frozen=True)
class PlannedRows:
    """A unit's rows in row order. The plan sends the rows in `large` to the large model; after the guard's
    decisions those in `called` go there. Rows in `skipped` go to no model; those that follow another row are
    among them, and have no score. `gains` are those that the plan orders by, `reason` is the guard's."""

    scores: pa.Table
    gains: Gains
    large: Mask
    called: Mask
    skipped: Mask
    reason: npt.NDArray[np.object_]


def planned_rows(work: UnitWork, rule: Rule | None) -> PlannedRows:
    """Join a unit's scores and decisions. Without a rule no row is planned for the large model.

    Raises:
        RoutelmtError: a call is not scored exactly once.
    """
    unit, copies = work.unit, work.copies()
    rows = np.arange(unit.first_row, unit.end_row)
    scores = work.committed(SCORES)
    if not np.array_equal(scores["row"].to_numpy(), rows[copies > 0]):
        raise RoutelmtError(
            f"{unit.shard.name}: rows {unit.first_row} to {unit.end_row - 1} are not scored exactly once "
            "each: please report it"
        )
    if scores.num_rows < len(rows):
        follows = copies == 0
        scores = scores.take(pa.array(np.cumsum(copies > 0) - 1, mask=follows))
    gains = Gains(total_gain(gain_of(scores), copies), np.full(len(rows), work.rank, np.int64), rows)
    large = rule(gains, scores) if rule else np.zeros(len(rows), bool)
    called, reason = large.copy(), np.full(len(rows), None, object)
    decided = work.committed(DECISIONS)
    offsets = work.offsets(decided)
    to_large = pc.equal(decided["call"], LARGE).to_numpy().astype(bool)
    # The guard may later escalate a row that it kept small: then its call to the large model counts.
    for mask, call in ((~to_large, False), (to_large, True)):
        called[offsets[mask]] = call
        reason[offsets[mask]] = decided["reason"].to_numpy(zero_copy_only=False)[mask]
    skipped = is_skipped(scores) | (copies == 0)
    return PlannedRows(scores, gains, large, called, skipped, reason)
