"""Assemble: each input shard comes back as one output shard, same rows, same order, seven columns
more. It rereads the input with pyarrow, so pass-through columns keep their types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.errors import InputChanged, RoutelmtError
from routelmt_batch.progress import Bars
from routelmt_batch.rows import (
    FAILED,
    FALLBACK,
    LARGE,
    NO_GAIN,
    OK,
    OUTPUT_FIELDS,
    SKIPPED,
    SMALL,
)
from routelmt_batch.shards import Shard, Unit, changed, sha256, write_atomically, write_json
from routelmt_batch.stages.allocate import Plan, planned_rows
from routelmt_batch.stages.attempts import attempts
from routelmt_batch.stages.tally import Tally
from routelmt_batch.stages.translate import Work, work_on
from routelmt_batch.workspace import Workspace

_IN_FLIGHT = 8


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
    ledger = workspace.ledger
    done = {event["shard"] for event in committed_outputs(workspace)}
    rows = workspace.shard_rows
    todo = [shard for shard in workspace.shards if shard.name not in done]
    units: dict[str, list[Unit]] = {shard.name: [] for shard in todo}
    for unit in workspace.units:
        if unit.shard.name in units:
            units[unit.shard.name].append(unit)
    lost: list[InputChanged] = []
    total = sum(rows.values())
    with bars.rows("assemble", total, total - sum(rows[shard.name] for shard in todo)) as advance:
        outcomes = _in_threads(lambda shard: _write_shard(workspace, plan, shard, units[shard.name]), todo)
        for shard, outcome in outcomes:
            if isinstance(outcome, InputChanged):
                lost.append(outcome)
                continue
            ledger.record("output", **vars(outcome))
            advance(rows[shard.name])
    if lost:
        raise InputChanged("\n".join(map(str, lost)))


def committed_outputs(workspace: Workspace) -> list[dict[str, Any]]:
    """Ledger lines of the output shards that stand: a retry reopens some, and one that was removed
    is written again."""
    standing: dict[str, dict[str, Any]] = {}
    for event in workspace.ledger.events:
        if event["event"] == "output":
            standing[event["shard"]] = event
        elif event["event"] == "retry_failed":
            for shard in event["shards"]:
                standing.pop(shard, None)
    folder = workspace.folder
    return [event for shard, event in standing.items() if folder.data(shard).exists()]


def _in_threads(
    write: Callable[[Shard], ShardOutput], shards: Iterable[Shard]
) -> Iterator[tuple[Shard, ShardOutput | InputChanged]]:
    def attempt(shard: Shard) -> tuple[Shard, ShardOutput | InputChanged]:
        try:
            return shard, write(shard)
        except InputChanged as error:
            return shard, error

    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        yield from pool.map(attempt, shards)


def _write_shard(workspace: Workspace, plan: Plan, shard: Shard, units: list[Unit]) -> ShardOutput:
    if sha256(shard.path) != shard.sha256:
        raise changed(shard)
    path = workspace.folder.data(shard.name)
    tally = Tally()
    compression = workspace.spec.output.compression

    def write(temporary: Path) -> None:
        with pq.ParquetFile(shard.path) as source:
            schema = source.schema_arrow
            for field in OUTPUT_FIELDS:
                schema = schema.append(field)
            with pq.ParquetWriter(temporary, schema, compression=compression) as writer:
                for unit in units:
                    work = work_on(workspace, unit)
                    table = source.read_row_group(unit.row_group).slice(0, unit.rows)
                    columns, prompt_tokens = _columns(work, plan)
                    tally.add(columns, prompt_tokens, *_languages(table, workspace))
                    for name, column in columns.items():
                        table = table.append_column(schema.field(name), column)
                    writer.write_table(table, row_group_size=max(unit.rows, 1))

    rows = sum(unit.rows for unit in units)

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


def _languages(table: pa.Table, workspace: Workspace) -> tuple[list[str | None], list[str | None]]:
    spec = workspace.spec.input

    def codes(column: str, constant: str | None) -> list[str | None]:
        if constant is not None:
            return [constant] * table.num_rows
        values: list[str | None] = table[column].to_pylist()
        return values

    return (
        codes(spec.columns.source_lang, spec.source_lang),
        codes(spec.columns.target_lang, spec.target_lang),
    )


def _columns(work: Work, plan: Plan) -> tuple[dict[str, pa.Array], list[int | None]]:
    """The output columns of a unit's rows, and the prompt tokens that the standing model read."""
    unit = work.unit
    planned = planned_rows(unit, work.rank, work.scores, plan.cut)
    state = attempts(unit, work.committed, planned.large)
    untried = ~planned.skipped & (state.standing < 0)
    if untried.any():
        row = unit.first_row + int(np.flatnonzero(untried)[0])
        raise RoutelmtError(f"{unit.shard.name}: row {row} was never sent to a model: please report it")
    tried = state.table.take(pa.array(state.standing, mask=state.standing < 0))
    statuses: list[str] = []
    routes: list[str | None] = []
    reasons: list[str | None] = []
    scores = planned.scores
    for large, skipped, translated, route, reason, score_reason in zip(
        planned.large,
        planned.skipped,
        state.translated,
        tried["route"].to_pylist(),
        tried["reason"].to_pylist(),
        scores["reason"].to_pylist(),
        strict=True,
    ):
        if skipped:
            statuses.append(SKIPPED)
        elif not translated:
            statuses.append(FAILED)
        else:
            statuses.append(FALLBACK if large and route == SMALL else OK)
        routes.append(route if translated else None)
        reasons.append(score_reason if skipped else reason or (NO_GAIN if score_reason else None))
    # A fallback says what went wrong with the model it was planned for.
    for index in np.flatnonzero(np.array(statuses) == FALLBACK):
        reasons[index] = reasons[index] or "large_failed"
    columns = {
        "translation": tried["translation"].combine_chunks(),
        "route": pa.array(routes, pa.string()),
        "planned_route": pa.array(np.where(planned.large, LARGE, SMALL), pa.string(), mask=planned.skipped),
        "predicted_gain": scores["gain"].combine_chunks(),
        "status": pa.array(statuses, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "output_tokens": tried["output_tokens"].combine_chunks(),
    }
    prompt_tokens: list[int | None] = tried["prompt_tokens"].to_pylist()
    return columns, prompt_tokens
