"""What the committed translations say of a unit's rows: who translated it, who failed.

The one place that knows how attempts of both models and of `--retry-failed` add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.ledger import TRANSLATIONS, Ledger, read_rows
from routelmt_batch.rows import LARGE, OK, SMALL, Route
from routelmt_batch.rows import TRANSLATIONS as SCHEMA
from routelmt_batch.units import Unit

Mask = npt.NDArray[np.bool_]


@dataclass
class Attempts:
    """By row of a unit. `standing` indexes `table`: the translation that stands, else the last
    failure, else -1."""

    table: pa.Table
    standing: npt.NDArray[np.int64]
    translated: Mask
    small_failed: Mask
    large_failed: Mask

    def dead(self, planned_large: Mask) -> Mask:
        """Rows that no model is left for: the small one failed, and the large one if planned."""
        return ~self.translated & self.small_failed & (~planned_large | self.large_failed)

    def to_send(self, route: Route, planned_large: Mask, skipped: Mask) -> Mask:
        """Rows that a pass of one model has to translate: its own share, and for the small model
        what the large one failed on."""
        if route == LARGE:
            return planned_large & ~self.translated & ~self.large_failed
        share = ~planned_large | self.large_failed
        return share & ~skipped & ~self.translated & ~self.small_failed


def generations(ledger: Ledger, unit: Unit) -> tuple[tuple[str, ...], ...]:
    """Translation parts that may hold the unit's rows, grouped by the retries before them."""
    found: dict[int, list[str]] = {}
    for entry in ledger.overlapping_entries(TRANSLATIONS, unit.shard.name, unit.first_row, unit.end_row):
        found.setdefault(entry.generation, []).append(str(ledger.part_path(entry)))
    return tuple(tuple(found.get(index, ())) for index in range(ledger.generation + 1))


def attempts(unit: Unit, parts: Sequence[Sequence[str]], planned_large: Mask) -> Attempts:
    """Add up a unit's committed attempts. A retry forgives the failures of rows that were dead."""
    tables, offset, rows = [], 0, unit.rows
    state = Attempts(
        SCHEMA.empty_table(),
        np.full(rows, -1),
        *(np.zeros(rows, bool) for _ in range(3)),
    )
    for generation, paths in enumerate(parts):
        if generation:
            forgiven = state.dead(planned_large)
            state.small_failed &= ~forgiven
            state.large_failed &= ~forgiven
        table = read_rows(paths, unit.shard.name, unit.first_row, unit.end_row, SCHEMA)
        place = table["row"].to_numpy() - unit.first_row
        good = pc.equal(table["status"], OK).to_numpy().astype(bool)
        small = pc.equal(table["route"], SMALL).to_numpy().astype(bool)
        index = np.arange(offset, offset + table.num_rows)
        bad = ~good & ~state.translated[place]
        state.standing[place[bad]] = index[bad]
        state.standing[place[good]] = index[good]
        state.translated[place[good]] = True
        state.small_failed[place[~good & small]] = True
        state.large_failed[place[~good & ~small]] = True
        tables.append(table)
        offset += table.num_rows
    state.table = pa.concat_tables([state.table, *tables])
    return state
