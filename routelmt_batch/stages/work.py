"""A unit of rows with its committed parts. Every stage reads committed rows through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Mask
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import read_parquet
from routelmt_batch.rows import CHECKS, DECISIONS, QUALITY, SCORES, STAGES, TRANSLATIONS, Stage
from routelmt_batch.store.workspace import AnyWorkspace

OF_JOB = (SCORES, DECISIONS, TRANSLATIONS, QUALITY, CHECKS)


class Part(NamedTuple):
    location: Location
    generation: int  # number of `--retry-failed` runs before it


@dataclass(frozen=True)
class UnitWork:
    """A unit and, by stage, the committed parts that may hold its rows. It is sent to the reading task.

    `rank` is its shard's position in the input, `generation` the number of `--retry-failed` runs so far.
    With a `model`, only its parts are named.
    """

    unit: Unit
    rank: int
    generation: int
    parts: Mapping[str, Sequence[Part]]
    model: str | None = None

    def committed(self, *stages: Stage, model: str | None = None, generation: int | None = None) -> pa.Table:
        """The unit's rows of one stage, or of several with the same schema, in row order. Without `model` and
        `generation` these are all models' and all runs' rows."""
        unit, schema = self.unit, stages[0].schema
        files = [
            part.location
            for stage in stages
            for part in self.parts.get(stage.name, ())
            if generation in (None, part.generation)
        ]
        if not files:
            return schema.empty_table()
        row = pc.field("row")
        wanted = (pc.field("shard") == unit.shard.name) & (row >= unit.first_row) & (row < unit.end_row)
        if model is not None:
            wanted &= pc.field("route") == model
        return pa.concat_tables([read_parquet(file).cast(schema).filter(wanted) for file in files]).sort_by(
            "row"
        )

    def offsets(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        """Positions within the unit of some of its rows."""
        return np.asarray(rows["row"].to_numpy() - self.unit.first_row, np.int64)

    def mask(self, rows: pa.Table) -> Mask:
        """Which rows of the unit are in a table."""
        mask = np.zeros(self.unit.rows, bool)
        mask[self.offsets(rows)] = True
        return mask

    def missing(self, *stages: Stage, model: str | None = None) -> Mask:
        """Rows of the unit that are not committed to any of the stages."""
        return ~self.mask(self.committed(*stages, model=model))


def work_on(
    workspace: AnyWorkspace, unit: Unit, stages: Sequence[Stage] = OF_JOB, model: str | None = None
) -> UnitWork:
    """A unit with its committed parts of some stages, of one model or of all."""
    ledger = workspace.ledger
    parts = {
        stage.name: [
            Part(ledger.part_path(entry), entry.generation)
            for entry in ledger.overlapping(stage, unit.shard.name, unit.first_row, unit.end_row)
            if model in (None, entry.model)
        ]
        for stage in stages
    }
    return UnitWork(unit, workspace.ranks[unit.shard.name], ledger.generation, parts, model)


def refreshed(workspace: AnyWorkspace, work: UnitWork) -> UnitWork:
    """The same unit with the parts that are committed now."""
    return work_on(workspace, work.unit, [STAGES[name] for name in work.parts], work.model)
