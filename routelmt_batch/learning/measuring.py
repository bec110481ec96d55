"""Measures the translations in label tables with a metric: a resumable pass in its own folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.corpus.shards import Shard, is_references, text_columns
from routelmt_batch.corpus.units import read_unit, references
from routelmt_batch.engines.lanes import Engine, Mask, Pending
from routelmt_batch.learning.labels import check_texts, find, reference_column, texts_of
from routelmt_batch.learning.scoring import open_tables
from routelmt_batch.metrics.metric import Metric, describe, open_metric
from routelmt_batch.progress import Bars
from routelmt_batch.rows import NO_REFERENCE, NO_TRANSLATION, QUALITY, Route
from routelmt_batch.spec import Input, MeasureSpec, Output
from routelmt_batch.spec import Metric as MetricPool
from routelmt_batch.stages.measure import lane, quality_by_row, unmeasured
from routelmt_batch.stages.passes import run_pass
from routelmt_batch.stages.requests import column_requests
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.store.manifest import of_input
from routelmt_batch.store.pickles import check_pickles
from routelmt_batch.store.workspace import Workspace

_TEXT_ROWS = 1024  # rows held as Python objects at a time


@dataclass(frozen=True)
class MeasureRecipe:
    """See workspace.Recipe."""

    spec: MeasureSpec
    metric: Metric

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        return {QUALITY.name: of_input(self.spec, shards, limit) | {"metric": describe(self.metric)}}


Measuring: TypeAlias = Workspace[MeasureSpec, MeasureRecipe]


@dataclass(frozen=True)
class Unmeasured:
    """Selects the rows of a unit whose translation by one model has no quality yet."""

    route: Route

    def __call__(self, work: UnitWork) -> Mask:
        return unmeasured(work, self.route)


@dataclass(frozen=True)
class TableReader:
    """Reads one model's translations from a table. A row without a translation, or without a reference that
    the metric needs, is skipped."""

    route: Route
    source: str
    reference: str | None

    def __call__(self, work: UnitWork, wanted: Mask) -> Iterator[pa.Table]:
        unit = work.unit
        columns = {"source": self.source, "hypothesis": f"translation_{self.route}"}
        if self.reference:
            columns["reference"] = self.reference
        for first, batch in read_unit(unit, list(columns.values()), _TEXT_ROWS):
            keep = np.flatnonzero(wanted[first - unit.first_row :][: batch.num_rows])
            texts = {key: batch[name].take(pa.array(keep)) for key, name in columns.items()}
            blank = [not (text or "").strip() for text in texts["hypothesis"].to_pylist()]
            skips = np.where(np.array(blank, bool), NO_TRANSLATION, "")
            if self.reference:
                found = references(texts["reference"])
                texts["reference"] = pa.array(found, pa.list_(pa.string()))
                without = np.array([not several for several in found], bool)
                skips = np.where((skips == "") & without, NO_REFERENCE, skips)
            if len(keep):
                yield column_requests(unit, (first + keep).tolist(), texts, skips.tolist())


@dataclass(frozen=True)
class Measured:
    """Qualities of the tables' translations by model, in row order; NaN where a row has none. `cut` counts
    translations that are longer than the metric reads."""

    metric: Metric
    quality: dict[Route, npt.NDArray[np.float64]]
    cut: int


def measure_tables(
    tables: Sequence[str],
    pool: MetricPool,
    routes: Sequence[Route],
    folder: Path,
    engine: Engine,
    bars: Bars,
    name: str,
) -> Measured:
    """Measure the translations of some models.

    It continues from the qualities in `folder`. If they are from other tables or another metric, it
    deletes them and starts again.

    Raises:
        InputError: the tables lack the texts that the metric reads.
    """
    files = find(tables)
    texts = texts_of(files)
    columns = texts.columns.model_copy(update={"reference": reference_column(texts)})
    spec = MeasureSpec(
        name=name,
        input=Input(uri=tuple(tables), **{**dict(texts), "columns": columns}),
        output=Output(uri=str(folder)),
        metric=pool,
    )

    metric = open_metric(pool)
    check_pickles(spec, bars)
    if not metric.needs_reference:
        spec = spec.without_references()
    check_texts(files, text_columns(spec.input).values())
    if spec.input.columns.reference:
        check_texts(files, [spec.input.columns.reference], is_references)
    with open_tables(MeasureRecipe(spec, metric), bars, "qualities") as workspace:
        for route in routes:
            _measure(workspace, route, engine, bars)
        cut = sum(workspace.ledger.totals(QUALITY, route).sums["cut"] for route in routes)
        quality = {route: _qualities(workspace, route) for route in routes}
        return Measured(workspace.recipe.metric, quality, cut)


def _measure(workspace: Measuring, route: Route, engine: Engine, bars: Bars) -> None:
    spec, metric = workspace.spec, workspace.recipe.metric
    columns = spec.input.columns
    work = [work_on(workspace, unit, [QUALITY]) for unit in workspace.units]
    pending = Pending(Unmeasured(route), TableReader(route, columns.source, columns.reference))
    measuring = replace(lane(workspace, route, spec.metric, metric, work), pending=pending)
    run_pass(workspace, engine, bars, [measuring], f"{spec.name} of {route}")


def _qualities(workspace: Measuring, route: Route) -> npt.NDArray[np.float64]:
    by_unit = [quality_by_row(work_on(workspace, unit, [QUALITY]), route) for unit in workspace.units]
    return np.concatenate(by_unit or [np.zeros(0)])
