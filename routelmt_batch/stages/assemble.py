"""Assemble: each input shard comes back as one output shard, same rows, same order, seven columns
more. It rereads the input with pyarrow, so pass-through columns keep their types."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from routelmt_batch.atomic import sha256, write_atomically, write_json
from routelmt_batch.errors import InputChanged, RoutelmtError
from routelmt_batch.ledger import Ledger
from routelmt_batch.progress import Bars
from routelmt_batch.rows import (
    FAILED,
    FALLBACK,
    LARGE,
    LARGE_FAILED,
    NO_GAIN,
    OK,
    OUTPUT_FIELDS,
    SKIPPED,
    SMALL,
)
from routelmt_batch.shards import Shard
from routelmt_batch.spec import Input
from routelmt_batch.stages.allocate import Plan, planned_rows
from routelmt_batch.stages.attempts import attempts
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.tally import Tally
from routelmt_batch.stages.translate import Work, work_on
from routelmt_batch.threads import Stop, each
from routelmt_batch.units import UNIT_ROWS, check_unchanged, read_unit, units
from routelmt_batch.workspace import Workspace, is_whole


@dataclass(frozen=True)
class ShardOutput:
    """A written output shard, as _SUCCESS and the ledger name it."""

    shard: str
    rows: int
    bytes: int
    sha256: str


def assemble(workspace: Workspace, plan: Plan, bars: Bars) -> None:
    """Write every output shard that is not committed yet, its report after it.

    Raises:
        InputChanged: shards that are not the files that were scored, by name; the others are
            written first.
    """
    ledger, rows = workspace.ledger, workspace.shard_rows
    done = {event["shard"] for event in committed_outputs(workspace)}
    todo = [shard for shard in workspace.shards if shard.name not in done]
    lost: list[InputChanged] = []
    started = time.time()
    total = sum(rows.values())
    with (
        bars.rows("assemble", total, total - sum(rows[shard.name] for shard in todo)) as advance,
        each(lambda shard, stop: _attempt(workspace, plan, shard, stop), todo) as outcomes,
    ):
        for shard, outcome in zip(todo, outcomes, strict=True):
            if isinstance(outcome, InputChanged):
                lost.append(outcome)
                continue
            ledger.record("output", **vars(outcome))
            advance(rows[shard.name])
    if todo:
        record_time(ledger, "assemble", sum(rows[shard.name] for shard in todo), started)
    if lost:
        raise InputChanged("\n".join(map(str, lost)))


def committed_outputs(workspace: Workspace) -> list[dict[str, Any]]:
    """Ledger lines of the output shards that need not be written again; one that was removed does."""
    folder = workspace.folder
    return [event for event in standing_outputs(workspace.ledger) if is_whole(folder, event)]


def standing_outputs(ledger: Ledger) -> list[dict[str, Any]]:
    """Ledger lines of output shards, without those that a retry opened again."""
    standing: dict[str, dict[str, Any]] = {}
    for event in ledger.events:
        if event["event"] == "output":
            standing[event["shard"]] = event
        elif event["event"] == "retry_failed":
            for shard in event["shards"]:
                standing.pop(shard, None)
    return list(standing.values())


def _attempt(workspace: Workspace, plan: Plan, shard: Shard, stop: Stop) -> ShardOutput | InputChanged:
    try:
        return _write_shard(workspace, plan, shard, stop)
    except InputChanged as error:
        return error


def _write_shard(workspace: Workspace, plan: Plan, shard: Shard, stop: Stop) -> ShardOutput:
    check_unchanged(shard, stop)
    path, rows = workspace.folder.data(shard.name), workspace.shard_rows[shard.name]
    tally = Tally()

    def write(temporary: Path) -> None:
        schema = pq.read_schema(shard.path)
        for field in OUTPUT_FIELDS:
            schema = schema.append(field)
        with pq.ParquetWriter(temporary, schema, compression=workspace.spec.output.compression) as writer:
            for group in units([shard], rows, most_rows=max(shard.row_groups, default=0) or 1):
                held: list[pa.RecordBatch] = []
                for first, batch in read_unit(group):
                    stop()
                    unit = replace(group, first_row=first, rows=batch.num_rows)
                    columns, prompt_tokens = _columns(work_on(workspace, unit), plan)
                    tally.add(columns, prompt_tokens, *_languages(batch, workspace.spec.input))
                    held.append(
                        pa.RecordBatch.from_arrays([*batch.columns, *columns.values()], schema=schema)
                    )
                    # The input's row groups, but none larger than what fits in memory easily.
                    if sum(part.num_rows for part in held) >= UNIT_ROWS:
                        writer.write_table(pa.Table.from_batches(held))
                        held = []
                if held:
                    writer.write_table(pa.Table.from_batches(held))

    def verify(temporary: Path) -> None:
        found = pq.read_metadata(temporary).num_rows
        if found != rows or found != tally.rows:
            raise RoutelmtError(f"{shard.name}: {found} rows written for {rows}: please report it")

    write_atomically(path, write, verify, "output")
    written = ShardOutput(shard.name, rows, path.stat().st_size, sha256(path))
    write_json(
        workspace.folder.report(shard.name),
        {"shard": shard.name, **tally.report(plan.cut), "bytes": written.bytes, "sha256": written.sha256},
        "report",
    )
    return written


def _languages(batch: pa.RecordBatch, spec: Input) -> tuple[pa.Array, pa.Array]:
    def codes(column: str, constant: str | None) -> pa.Array:
        if constant is not None:
            return pa.repeat(constant, batch.num_rows)
        return batch.column(column).cast(pa.string())

    return (
        codes(spec.columns.source_lang, spec.source_lang),
        codes(spec.columns.target_lang, spec.target_lang),
    )


def _columns(work: Work, plan: Plan) -> tuple[dict[str, pa.Array], pa.Array]:
    """The output columns of some rows, and the prompt tokens that the standing model read."""
    unit = work.unit
    planned = planned_rows(unit, work.rank, work.scores, plan.cut)
    state = attempts(unit, work.committed, planned.large)
    untried = ~planned.skipped & (state.standing < 0)
    if untried.any():
        row = unit.first_row + int(np.flatnonzero(untried)[0])
        raise RoutelmtError(f"{unit.shard.name}: row {row} was never sent to a model: please report it")
    # `standing` picks each row's attempt; a skipped row has none, and gets nulls.
    tried = state.table.take(pa.array(state.standing, mask=state.standing < 0)).combine_chunks()
    score_reason = planned.scores["reason"].combine_chunks()
    by_small = np.asarray(pc.fill_null(pc.equal(tried["route"], SMALL), False).to_numpy(), bool)
    fallback = planned.large & state.translated & by_small
    status = np.select([planned.skipped, ~state.translated, fallback], [SKIPPED, FAILED, FALLBACK], OK)
    no_gain = pc.if_else(pc.is_valid(score_reason), NO_GAIN, None)
    why = pc.if_else(pa.array(fallback), LARGE_FAILED, no_gain)
    columns = {
        "translation": tried["translation"],
        "route": pc.if_else(pa.array(state.translated), tried["route"], None),
        "planned_route": pa.array(np.where(planned.large, LARGE, SMALL), mask=planned.skipped),
        "predicted_gain": planned.scores["gain"],
        "status": pa.array(status),
        "reason": pc.if_else(pa.array(planned.skipped), score_reason, pc.coalesce(tried["reason"], why)),
        "output_tokens": tried["output_tokens"],
    }
    return {field.name: _array(columns[field.name], field.type) for field in OUTPUT_FIELDS}, _array(
        tried["prompt_tokens"], pa.int32()
    )


def _array(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values.cast(kind)
