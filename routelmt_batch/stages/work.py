"""A unit of rows with its committed parts. Every stage reads committed rows through it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache, cached

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Mask
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import read_parquet
from routelmt_batch.rows import (
    CHECKS,
    DECISIONS,
    FOLDS,
    FOLLOWERS,
    QUALITY,
    SCORES,
    STAGES,
    TRANSLATIONS,
    Stage,
)
from routelmt_batch.store.workspace import AnyWorkspace

_CACHE_BYTES = 64 << 20
OF_JOB = (FOLDS, SCORES, DECISIONS, TRANSLATIONS, QUALITY, CHECKS, FOLLOWERS)


class Part(NamedTuple):
    """A committed part, and the lowest and highest of its rows of the unit's shard."""

    name: str
    sha256: str
    model: str | None  # of all its rows, if its stage keeps models apart
    generation: int  # number of `--retry-failed` runs before it
    low: int
    high: int


@dataclass(frozen=True)
class UnitWork:
    """A unit and, by stage, the committed parts that may hold its rows. It is sent to the reading task.

    `folder` is the job's work folder, which holds the parts. `rank` is its shard's position in the input,
    `generation` the number of `--retry-failed` runs so far. With a `model`, only its parts are named. Without
    `upgrade`, large translations of rows that the large model is not called for do not count.
    """

    folder: Location
    unit: Unit
    rank: int
    generation: int
    parts: Mapping[str, Sequence[Part]]
    model: str | None = None
    upgrade: bool = True

    def within(self, unit: Unit) -> UnitWork:
        """A smaller unit of the same shard, with its parts."""
        parts = {
            stage: [part for part in parts if part.low < unit.end_row and part.high >= unit.first_row]
            for stage, parts in self.parts.items()
        }
        return replace(self, unit=unit, parts=parts)

    def committed(self, *stages: Stage, model: str | None = None, generation: int | None = None) -> pa.Table:
        """The unit's rows of one stage, or of several with the same schema, in row order. Without `model` and
        `generation` these are all models' and all runs' rows."""
        unit, schema = self.unit, stages[0].schema
        parts = [
            (stage.name, part)
            for stage in stages
            for part in self.parts.get(stage.name, ())
            if generation in (None, part.generation) and (model is None or part.model in (None, model))
        ]
        if not parts:
            return schema.empty_table()
        row = pc.field("row")
        wanted = (pc.field("shard") == unit.shard.name) & (row >= unit.first_row) & (row < unit.end_row)
        if model is not None:
            wanted &= pc.field("route") == model
        tables = [
            read_part(self.folder / stage / part.name, part.sha256).cast(schema).filter(wanted)
            for stage, part in parts
        ]
        return pa.concat_tables(tables).sort_by("row")

    def offsets(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        """Positions within the unit of some of its rows."""
        return np.asarray(rows["row"].to_numpy() - self.unit.first_row, np.int64)

    def mask(self, rows: pa.Table) -> Mask:
        """Which rows of the unit are in a table."""
        mask = np.zeros(self.unit.rows, bool)
        mask[self.offsets(rows)] = True
        return mask

    def copies(self) -> npt.NDArray[np.int64]:
        """For each row of the unit, how many rows its call is for; 0 if it follows another row."""
        copies = np.ones(self.unit.rows, np.int64)
        folded = self.committed(FOLDS)
        copies[self.offsets(folded)] = folded["copies"].to_numpy()
        return copies

    def missing(self, *stages: Stage, model: str | None = None) -> Mask:
        """Rows of the unit that are not committed to any of the stages."""
        return ~self.mask(self.committed(*stages, model=model))


@cached(LRUCache(_CACHE_BYTES, getsizeof=lambda table: table.nbytes), lock=threading.Lock())
def read_part(location: Location, sha256: str) -> pa.Table:
    """A part's rows. The next unit reads mostly the same parts."""
    return read_parquet(location, sha256)


def work_on(
    workspace: AnyWorkspace, unit: Unit, stages: Sequence[Stage] = OF_JOB, model: str | None = None
) -> UnitWork:
    """A unit with its committed parts of some stages, of one model or of all."""
    ledger = workspace.ledger
    parts = {
        stage.name: [
            Part(
                entry.part,
                entry.sha256,
                entry.model,
                entry.generation,
                entry.spans[unit.shard.name].low,
                entry.spans[unit.shard.name].high,
            )
            for entry in ledger.overlapping(stage, unit.shard.name, unit.first_row, unit.end_row)
            if model in (None, entry.model)
        ]
        for stage in stages
    }
    reuse = getattr(workspace.spec, "reuse", None)  # only jobs have it
    return UnitWork(
        ledger.folder,
        unit,
        workspace.ranks[unit.shard.name],
        ledger.generation,
        parts,
        model,
        upgrade=reuse is None or reuse.upgrade,
    )


def refreshed(workspace: AnyWorkspace, work: UnitWork) -> UnitWork:
    """The same unit with the parts that are committed now."""
    return work_on(workspace, work.unit, [STAGES[name] for name in work.parts], work.model)
