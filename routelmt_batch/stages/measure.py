"""Measure: a metric scores committed translations. Each row's quality by each model is committed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.corpus.units import read_lines
from routelmt_batch.engines.lanes import Lane, Mask, Pending
from routelmt_batch.metrics.by_reference import ByReference
from routelmt_batch.metrics.metric import Metric
from routelmt_batch.routers.card import Scale
from routelmt_batch.rows import (
    AUDIT_QUALITY,
    LARGE,
    NO_REFERENCE,
    NOT_A_NUMBER,
    QUALITY,
    SMALL,
    Route,
    Stage,
)
from routelmt_batch.spec import Input, Pool
from routelmt_batch.stages.attempts import Attempts, translated
from routelmt_batch.stages.passes import PartWriter, part_writer
from routelmt_batch.stages.requests import column_requests
from routelmt_batch.stages.work import UnitWork
from routelmt_batch.store.ledger import PartEntry
from routelmt_batch.store.workspace import AnyWorkspace


def qualities(work: UnitWork, of: str) -> pa.Table:
    """Committed qualities of a unit's rows, in row order; the audit's too, if the unit has its parts. `of` is
    a route, or `predicted`."""
    return work.committed(QUALITY, AUDIT_QUALITY, model=of)


def quality_by_row(work: UnitWork, of: str) -> npt.NDArray[np.float64]:
    """Quality of each row of a unit; NaN if there is none."""
    table = qualities(work, of)
    quality = np.full(work.unit.rows, np.nan)
    quality[work.offsets(table)] = table["quality"].to_numpy(zero_copy_only=False)
    return quality


def unmeasured(work: UnitWork, of: str) -> Mask:
    """Rows of a unit whose quality is not committed."""
    return ~work.mask(qualities(work, of))


@dataclass(frozen=True)
class Measurable:
    """Selects the rows of a unit, or of its wanted rows, that one model translated and that have no quality
    yet."""

    route: Route
    wanted: Callable[[UnitWork], Mask] | None = None

    def __call__(self, work: UnitWork) -> Mask:
        todo = work.mask(translated(work, self.route)) & unmeasured(work, self.route)
        return np.asarray(todo & self.wanted(work)) if self.wanted and todo.any() else todo


@dataclass(frozen=True)
class QualityReader:
    """Reads one model's translations with their sources and, if the metric needs them, their references."""

    input: Input
    route: Route
    needs_reference: bool

    def __call__(self, work: UnitWork, wanted: Mask) -> Iterator[pa.Table]:
        unit, good = work.unit, translated(work, self.route)
        texts = dict(zip(good["row"].to_pylist(), good["translation"].to_pylist(), strict=True))
        also = ("reference",) if self.needs_reference else ()
        for lines in read_lines(unit, self.input, also):
            indices = [i for i, row in enumerate(lines.rows) if wanted[row - unit.first_row]]
            if not indices:
                continue
            rows = [lines.rows[i] for i in indices]
            columns = {
                "hypothesis": pa.array([texts[row] for row in rows], pa.string()),
                "source": pa.array([lines.texts[i] for i in indices], pa.string()),
            }
            skips = None
            if self.needs_reference:
                references = [lines.references[i] for i in indices]
                columns["reference"] = pa.array(references, pa.list_(pa.string()))
                skips = ["" if several else NO_REFERENCE for several in references]
            yield column_requests(unit, rows, columns, skips)


@dataclass(frozen=True)
class QualityWriter:
    """Commits results as qualities on the scale: mean + std x the metric's or router's output, or the mean of
    the outputs by reference."""

    part: PartWriter
    of: str
    scale: Scale = field(default_factory=Scale)

    def __call__(self, results: pa.Table) -> PartEntry:
        score = results["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        by_reference = results["scores"].to_pylist()
        for row, scores in enumerate(by_reference):
            if scores:
                score[row] = sum(scores) / len(scores)
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
                "by_reference": [
                    scores if fine else None for scores, fine in zip(by_reference, known, strict=True)
                ],
                "reason": reasons,
            },
            schema=QUALITY.schema,
        )
        return self.part(table, results)


def lane(
    workspace: AnyWorkspace,
    route: Route,
    pool: Pool,
    metric: Metric,
    work: Sequence[UnitWork],
    wanted: Callable[[UnitWork], Mask] | None = None,
    stage: Stage = QUALITY,
) -> Lane:
    """A lane that measures one model's translations, of the wanted rows or of all, and commits to a stage."""
    spec = workspace.spec
    scorer = ByReference(metric) if metric.needs_reference else metric
    return Lane(
        label=f"{metric.name} of {route}",
        pool=pool,
        scorer=scorer,
        fills="scores" if metric.needs_reference else "score",
        cuts=scorer.cuts,
        python=metric.python,
        units=work,
        pending=Pending(Measurable(route, wanted), QualityReader(spec.input, route, metric.needs_reference)),
        write=QualityWriter(part_writer(workspace.ledger, stage, route), route),
        part_rows=spec.run.part_rows,
        patience=spec.run.patience,
        stage=stage,
        model=route,
    )


def verified_small(work: UnitWork, state: Attempts, called: Mask, margin: float | None) -> Mask:
    """Called rows whose large translation scores lower than the small one by more than the margin; no rows
    without a margin."""
    if margin is None:
        return np.zeros(work.unit.rows, bool)
    both = (state.translation[SMALL] >= 0) & (state.translation[LARGE] >= 0)
    worse = quality_by_row(work, LARGE) < quality_by_row(work, SMALL) - margin
    return np.asarray(called & both & worse)
