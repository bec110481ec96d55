"""Measure: a metric over committed translations; each row's quality by each model is committed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit, read_lines
from routelmt_batch.engines.lanes import Lane
from routelmt_batch.metrics.metric import Metric
from routelmt_batch.routers.card import Scale
from routelmt_batch.rows import (
    LARGE,
    NO_REFERENCE,
    NOT_A_NUMBER,
    OK,
    SMALL,
    TRANSLATIONS,
    Route,
)
from routelmt_batch.rows import QUALITY as SCHEMA
from routelmt_batch.spec import Input, Pool
from routelmt_batch.stages.attempts import Attempts, Mask
from routelmt_batch.stages.passes import PartWriter
from routelmt_batch.stages.requests import column_requests
from routelmt_batch.store.ledger import QUALITY, PartEntry, read_rows
from routelmt_batch.store.workspace import AnyWorkspace


class Measurable(Protocol):
    """A unit, and the parts that may hold its translations and qualities."""

    @property
    def unit(self) -> Unit: ...
    @property
    def translations(self) -> Sequence[str]: ...
    @property
    def quality(self) -> Sequence[str]: ...


def qualities(work: Measurable, of: str) -> pa.Table:
    """Committed qualities of a unit's rows, in row order; `of` is a route, or `predicted`."""
    unit = work.unit
    table = read_rows(work.quality, unit.shard.name, unit.first_row, unit.end_row, SCHEMA)
    return table.filter(pc.equal(table["route"], of))


def quality_by_row(work: Measurable, of: str) -> npt.NDArray[np.float64]:
    """Quality of each row of a unit; NaN where there is none."""
    table = qualities(work, of)
    found = np.full(work.unit.rows, np.nan)
    found[table["row"].to_numpy() - work.unit.first_row] = table["quality"].to_numpy(zero_copy_only=False)
    return found


def unmeasured(work: Measurable, of: str) -> Mask:
    """Rows of a unit whose quality is not committed."""
    todo = np.ones(work.unit.rows, bool)
    todo[qualities(work, of)["row"].to_numpy() - work.unit.first_row] = False
    return todo


def measurable(work: Measurable, route: Route) -> Mask:
    """Rows of a unit that one model translated, and that have no quality yet."""
    return _unmeasured_of(work, route, _good(work, route))


def _unmeasured_of(work: Measurable, route: Route, good: pa.Table) -> Mask:
    translated = np.zeros(work.unit.rows, bool)
    translated[good["row"].to_numpy() - work.unit.first_row] = True
    return np.asarray(translated & unmeasured(work, route))


def _good(work: Measurable, route: Route) -> pa.Table:
    """One model's translations of a unit."""
    unit = work.unit
    table = read_rows(work.translations, unit.shard.name, unit.first_row, unit.end_row, TRANSLATIONS)
    return table.filter((pc.field("route") == route) & (pc.field("status") == OK))


@dataclass(frozen=True)
class Reader:
    """Emits one model's translations that have no quality yet, the wanted ones or all, with source and,
    where the metric reads it, reference."""

    input: Input
    route: Route
    needs_reference: bool
    wanted: Callable[[Any], Mask] | None

    def __call__(self, work: Measurable) -> Iterator[pa.Table]:
        unit, good = work.unit, _good(work, self.route)
        todo = _unmeasured_of(work, self.route, good)
        if self.wanted:
            todo &= self.wanted(work)
        if not todo.any():
            return
        texts = dict(zip(good["row"].to_pylist(), good["translation"].to_pylist(), strict=True))
        also = ("reference",) if self.needs_reference else ()
        for lines in read_lines(unit, self.input, also):
            at = [i for i, row in enumerate(lines.rows) if todo[row - unit.first_row]]
            if not at:
                continue
            rows = [lines.rows[i] for i in at]
            columns = {"hypothesis": [texts[row] for row in rows], "source": [lines.texts[i] for i in at]}
            skips = None
            if self.needs_reference:
                columns["reference"] = references = [lines.references[i] for i in at]
                skips = ["" if (text or "").strip() else NO_REFERENCE for text in references]
            texts_of = {name: pa.array(values, pa.string()) for name, values in columns.items()}
            yield column_requests(unit, rows, texts_of, skips)


@dataclass(frozen=True)
class Writer:
    """Commits results as qualities on the scale: mean + std x what the metric or router says."""

    part: PartWriter
    of: str
    scale: Scale = field(default_factory=Scale)

    def __call__(self, results: pa.Table) -> PartEntry:
        score = results["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        quality = self.scale.mean + self.scale.std * score
        known = np.isfinite(quality)
        reasons = [
            None if fine else skip or error or NOT_A_NUMBER
            for fine, skip, error in zip(
                known, results["skip"].to_pylist(), results["error"].to_pylist(), strict=True
            )
        ]
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "route": [self.of] * results.num_rows,
                "quality": pa.array(quality, pa.float64(), mask=~known),
                "reason": reasons,
            },
            schema=SCHEMA,
        )
        counts = {
            self.of: table.num_rows,
            f"{self.of}_unknown": table["quality"].null_count,
            f"{self.of}_cut": pc.sum(results["cut"]).as_py() or 0,
        }
        return self.part(table, counts)


def lane(
    workspace: AnyWorkspace,
    route: Route,
    pool: Pool,
    metric: Metric,
    work: Sequence[Measurable],
    wanted: Callable[[Any], Mask] | None = None,
    stage: str = QUALITY,
) -> Lane:
    """The metric over one model's translations, of the wanted rows or of all, committed to a stage."""
    spec = workspace.spec
    return Lane(
        label=f"{metric.name} of {route}",
        pool=pool,
        scorer=metric,
        cuts=metric.cuts,
        python=metric.python,
        units=work,
        read=Reader(spec.input, route, metric.needs_reference, wanted),
        write=Writer(PartWriter(workspace.folder.work, stage, route), route),
        part_rows=spec.run.part_rows,
        stage=stage,
        model=route,
    )


def verified_small(work: Measurable, state: Attempts, called: Mask, margin: float | None) -> Mask:
    """Called rows whose large translation scores lower than the small one by more than the margin;
    none without one."""
    if margin is None:
        return np.zeros(work.unit.rows, bool)
    both = (state.place[SMALL] >= 0) & (state.place[LARGE] >= 0)
    worse = quality_by_row(work, LARGE) < quality_by_row(work, SMALL) - margin
    return np.asarray(called & both & worse)
