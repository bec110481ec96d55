"""What the committed translations say of a unit's rows: who translated it, who failed.

The one place that knows how attempts of both models and of `--retry-failed` add up.
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
    """By row of a unit: where `table` holds each model's translation, and the last failure; -1 for none."""

    table: pa.Table
    translation: dict[Route, Indices]
    failure: Indices
    failed: dict[Route, Mask]

    @property
    def translated(self) -> Mask:
        return np.asarray((self.translation[SMALL] >= 0) | (self.translation[LARGE] >= 0))

    def chosen(self, kept_small: Mask) -> Indices:
        """Where the translation that stands is: the large model's if there is one, but for the rows
        that keep the small one's; else the last failure; else -1."""
        small, large = self.translation[SMALL], self.translation[LARGE]
        best = np.where((large >= 0) & ~(kept_small & (small >= 0)), large, small)
        return np.where(best >= 0, best, self.failure)

    def dead(self, called: Mask) -> Mask:
        """Rows that no model is left for: the small one failed, and the large one if it was called."""
        return ~self.translated & self.failed[SMALL] & (~called | self.failed[LARGE])

    def to_send(self, route: Route, called: Mask, hypotheses: bool, skipped: Mask) -> Mask:
        """Rows that a pass of one model has to translate: its own share; for the small model also what
        the large one failed on, and with `hypotheses` every row."""
        share = called if route == LARGE else hypotheses | ~called | self.failed[LARGE]
        return np.asarray(share & ~skipped & (self.translation[route] < 0) & ~self.failed[route])


def translated(work: UnitWork, route: Route) -> pa.Table:
    """One model's translations of a unit's rows, in row order; an audit's, too, where the unit has them."""
    return work.committed(TRANSLATIONS, AUDIT_TRANSLATIONS, model=route).filter(pc.field("status") == OK)


def attempts(work: UnitWork, called: Mask) -> Attempts:
    """Add up a unit's committed attempts. A retry forgives the failures of rows that were dead."""
    tables, offset, rows = [], 0, work.unit.rows
    state = Attempts(
        TRANSLATIONS.schema.empty_table(),
        {route: np.full(rows, -1) for route in (SMALL, LARGE)},
        np.full(rows, -1),
        {route: np.zeros(rows, bool) for route in (SMALL, LARGE)},
    )
    for generation in range(work.generation + 1):
        if generation:
            forgiven = state.dead(called)
            for failed in state.failed.values():
                failed &= ~forgiven
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
    return state
