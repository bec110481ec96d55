"""Assemble: each input shard becomes one output shard with a job's seven columns added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import codes
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.progress import Bars
from routelmt_batch.rows import (
    FALLBACK,
    LARGE,
    LARGE_FAILED,
    NO_GAIN,
    OK,
    OUTPUT_FIELDS,
    SKIPPED,
    SMALL,
    VERIFIED_SMALL,
)
from routelmt_batch.spec import Input
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.attempts import attempts
from routelmt_batch.stages.check import reasons
from routelmt_batch.stages.gains import Rule
from routelmt_batch.stages.measure import verified_small
from routelmt_batch.stages.outputs import Addition, write_shards
from routelmt_batch.stages.planned import planned_rows
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.tally import Tally
from routelmt_batch.stages.work import UnitWork


def assemble(workspace: Job, plan: Plan, engine: Engine, bars: Bars) -> None:
    """Write every output shard that is not committed yet, and then its report.

    Raises:
        InputChanged: see outputs.write_shards.
    """
    columns = _JobColumns(plan.rule, workspace.spec.guard.verify_margin, workspace.spec.input)
    write_shards(workspace, Addition(OUTPUT_FIELDS, partial(Tally, plan.threshold), columns), engine, bars)


@dataclass(frozen=True)
class _JobColumns:
    """See outputs.Columns."""

    rule: Rule
    margin: float | None
    input: Input

    def __call__(self, work: UnitWork, batch: pa.RecordBatch, counted: Tally) -> dict[str, pa.Array]:
        added, prompt_tokens, doubts = _columns(work, self.rule, self.margin)
        counted.add(added, prompt_tokens, doubts, *codes(batch, self.input))
        return added


def _columns(
    work: UnitWork, rule: Rule, margin: float | None
) -> tuple[dict[str, pa.Array], pa.Array, list[list[str] | None]]:
    """The output columns of some rows, the prompt tokens that the chosen model read, and why its
    translations are doubtful."""
    unit = work.unit
    planned = planned_rows(work, rule)
    state = attempts(work, planned.called)
    kept_small = verified_small(work, state, planned.called, margin)
    chosen = state.chosen(kept_small)
    untried = ~planned.skipped & (chosen < 0)
    if untried.any():
        row = unit.first_row + int(np.flatnonzero(untried)[0])
        raise RoutelmtError(f"{unit.shard.name}: row {row} was never sent to a model: please report it")
    # `chosen` picks each row's attempt; a skipped row has none, and gets nulls.
    tried = state.table.take(pa.array(chosen, mask=chosen < 0)).combine_chunks()
    score_reason = planned.scores["reason"].combine_chunks()
    by_small = np.asarray(pc.fill_null(pc.equal(tried["route"], SMALL), False).to_numpy(), bool)
    fallback = planned.called & state.translated & by_small & ~kept_small
    attempt = pc.fill_null(tried["status"], OK).to_numpy()
    status = np.select([planned.skipped, fallback], [SKIPPED, FALLBACK], attempt)
    no_gain = pc.if_else(pc.is_valid(score_reason), NO_GAIN, None)
    doubts = np.where(by_small, reasons(work, SMALL), reasons(work, LARGE)).tolist()
    doubt = pa.array([slugs[0] if slugs else None for slugs in doubts], pa.string())
    why = pc.coalesce(pa.array(planned.reason, pa.string()), no_gain, doubt)
    for rows, slug in ((kept_small, VERIFIED_SMALL), (fallback, LARGE_FAILED)):
        why = pc.if_else(pa.array(rows), slug, why)
    reason = pc.coalesce(tried["reason"], why)
    columns = {
        "translation": tried["translation"],
        "route": pc.if_else(pa.array(state.translated), tried["route"], None),
        "planned_route": pa.array(np.where(planned.large, LARGE, SMALL), mask=planned.skipped),
        "predicted_gain": planned.scores["gain"],
        "status": pa.array(status),
        "reason": pc.if_else(pa.array(planned.skipped), score_reason, reason),
        "output_tokens": tried["output_tokens"],
    }
    output = {field.name: _array(columns[field.name], field.type) for field in OUTPUT_FIELDS}
    return output, _array(tried["prompt_tokens"], pa.int32()), doubts


def _array(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values.cast(kind)
