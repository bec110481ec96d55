"""Which models translated each row of a unit and which failed, by its committed translations.

Only this module knows how the attempts of both models and of `--retry-failed` combine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import Mask
from routelmt_batch.rows import AUDIT_TRANSLATIONS, LARGE, OK, SMALL, TRANSLATIONS, Route
from routelmt_batch.stages.work import UnitWork

Indices = npt.NDArray[np.int64]


@dataclass
class Attempts:
    """For each row of a unit: the index in `table` of each model's translation and of the last failure, or
    -1; and the models whose failure counts."""

    table: pa.Table
    translation: dict[Route, Indices]
    failure: Indices
    failed: dict[Route, Mask]

    @property
    def translated(self) -> Mask:
        return np.asarray((self.translation[SMALL] >= 0) | (self.translation[LARGE] >= 0))

    def chosen(self, kept_small: Mask) -> Indices:
        """Index in `table` of the attempt for the output: the large model's translation (except for rows
        that keep the small one's), else the small one's, else the last failure, else -1."""
        small, large = self.translation[SMALL], self.translation[LARGE]
        best = np.where((large >= 0) & ~(kept_small & (small >= 0)), large, small)
        return np.where(best >= 0, best, self.failure)

    def dead(self, called: Mask) -> Mask:
        """Untranslated rows with no model left to try: small failed, and so did large if it was called."""
        return ~self.translated & self.failed[SMALL] & (~called | self.failed[LARGE])

    def to_send(self, route: Route, called: Mask, hypotheses: bool, skipped: Mask) -> Mask:
        """Rows that one model has still to translate: its own share and, for the small model, the rows that
        the large one failed on. With `hypotheses` the small model's share is every row."""
        own = ~called & (self.translation[LARGE] < 0)  # an earlier job's large translation may be there
        share = called if route == LARGE else hypotheses | own | self.failed[LARGE]
        return np.asarray(share & ~skipped & (self.translation[route] < 0) & ~self.failed[route])


def translated(work: UnitWork, route: Route) -> pa.Table:
    """One model's translations of a unit's rows, in row order; the audit's too, if the unit has its parts."""
    return work.committed(TRANSLATIONS, AUDIT_TRANSLATIONS, model=route).filter(pc.field("status") == OK)


def attempts(work: UnitWork, called: Mask) -> Attempts:
    """Combine a unit's committed attempts. `--retry-failed` cancels the failures of rows that were dead."""
    tables, offset, rows = [], 0, work.unit.rows
    state = Attempts(
        TRANSLATIONS.schema.empty_table(),
        {route: np.full(rows, -1) for route in (SMALL, LARGE)},
        np.full(rows, -1),
        {route: np.zeros(rows, bool) for route in (SMALL, LARGE)},
    )
    for generation in range(work.generation + 1):
        if generation:
            retried = state.dead(called)
            for failed in state.failed.values():
                failed &= ~retried
        table = work.committed(TRANSLATIONS, generation=generation)
        rows_at = work.offsets(table)
        index = np.arange(offset, offset + table.num_rows)
        good = pc.equal(table["status"], OK).to_numpy().astype(bool)
        for route in (SMALL, LARGE):
            of_route = pc.equal(table["route"], route).to_numpy().astype(bool)
            state.translation[route][rows_at[good & of_route]] = index[good & of_route]
            state.failed[route][rows_at[~good & of_route]] = True
        state.failure[rows_at[~good]] = index[~good]
        tables.append(table)
        offset += table.num_rows
    state.table = pa.concat_tables([state.table, *tables])
    if not work.upgrade:
        state.translation[LARGE][~called] = -1
    return state
