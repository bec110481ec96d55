"""Assemble: each input shard becomes one output shard with a job's seven columns added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import codes
from routelmt_batch.engines.lanes import Engine, Mask
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.progress import Bars
from routelmt_batch.rows import (
    FALLBACK,
    FOLLOWERS,
    LARGE,
    LARGE_FAILED,
    NO_GAIN,
    OK,
    OUTPUT_FIELDS,
    OUTPUT_NAMES,
    SKIPPED,
    SMALL,
    VERIFIED_SMALL,
)
from routelmt_batch.spec import Input
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.attempts import attempts
from routelmt_batch.stages.check import reasons
from routelmt_batch.stages.follow import follow
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
    outputs = _Outputs(plan.rule, workspace.spec.guard.verify_margin)
    follow(workspace, outputs, engine, bars)
    columns = _JobColumns(outputs, workspace.spec.input)
    write_shards(workspace, Addition(OUTPUT_FIELDS, partial(Tally, plan.threshold), columns), engine, bars)


@dataclass(frozen=True)
class _JobColumns:
    """See outputs.Columns."""

    outputs: _Outputs
    input: Input

    def __call__(self, work: UnitWork, batch: pa.RecordBatch, counted: Tally) -> dict[str, pa.Array]:
        table = self.outputs(work)
        followers = work.committed(FOLLOWERS, generation=work.generation)
        order = np.arange(work.unit.rows)
        order[work.offsets(followers)] = work.unit.rows + np.arange(followers.num_rows)
        copied = followers.select([*OUTPUT_NAMES, "doubts"])
        table = pa.concat_tables([table, copied], promote_options="default")
        table = table.take(order).combine_chunks()
        folded = work.mask(followers)
        if (missing := (work.copies() == 0) & ~folded).any():
            raise _never_sent(work, missing)
        added = {field.name: _array(table[field.name], field.type) for field in OUTPUT_FIELDS}
        prompt_tokens = _array(table["prompt_tokens"], pa.int32())
        counted.add(added, prompt_tokens, table["doubts"].to_pylist(), folded, *codes(batch, self.input))
        return added


@dataclass(frozen=True)
class _Outputs:
    """The output of a unit's rows: OUTPUT_FIELDS, the prompt tokens that the chosen model read, and `doubts`:
    why its translation is doubtful. Rows that follow another are as if they were skipped."""

    rule: Rule
    margin: float | None

    def __call__(self, work: UnitWork) -> pa.Table:
        planned = planned_rows(work, self.rule)
        state = attempts(work, planned.called)
        kept_small = verified_small(work, state, planned.called, self.margin)
        chosen = state.chosen(kept_small)
        if (untried := ~planned.skipped & (chosen < 0)).any():
            raise _never_sent(work, untried)
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
        return pa.table(
            {
                **output,
                "doubts": pa.array(doubts, pa.list_(pa.string())),
                "prompt_tokens": _array(tried["prompt_tokens"], pa.int32()),
            }
        )


def _never_sent(work: UnitWork, rows: Mask) -> RoutelmtError:
    row = work.unit.first_row + int(np.flatnonzero(rows)[0])
    return RoutelmtError(f"{work.unit.shard.name}: row {row} was never sent to a model: please report it")


def _array(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values.cast(kind)
