"""Where the plan and the guard send a unit's rows: the join of its scores and the guard's decisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import Mask
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.rows import DECISIONS, LARGE, SCORES
from routelmt_batch.stages.allocate import admitted, gain_of, is_skipped
from routelmt_batch.stages.work import UnitWork
from routelmt_batch.stats.selection import Cut, Gains


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


def planned_rows(work: UnitWork, cut: Cut | None) -> PlannedRows:
    """Raises RoutelmtError if the committed scores do not hold each row of the unit once."""
    unit = work.unit
    scores = work.committed(SCORES)
    rows = scores["row"].to_numpy()
    if not np.array_equal(rows, np.arange(unit.first_row, unit.end_row)):
        raise RoutelmtError(
            f"{unit.shard.name}: rows {unit.first_row} to {unit.end_row} are not scored once each"
        )
    gains = Gains(gain_of(scores), np.full(len(rows), work.rank, np.int64), rows)
    large = admitted(cut, gains)
    called, reason = large.copy(), np.full(len(rows), None, object)
    decided = work.committed(DECISIONS)
    offsets = work.offsets(decided)
    to_large = pc.equal(decided["call"], LARGE).to_numpy().astype(bool)
    # A row that the guard kept small may be escalated later: its call to the large model decides.
    for mask, call in ((~to_large, False), (to_large, True)):
        called[offsets[mask]] = call
        reason[offsets[mask]] = decided["reason"].to_numpy(zero_copy_only=False)[mask]
    return PlannedRows(scores, gains, large, called, is_skipped(scores), reason)
