"""A pass: lanes through the engine, each part committed as it arrives, times recorded."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.atomic import sha256, write_parquet
from routelmt_batch.engines.lanes import REQUESTS, Engine, Lane, Receipt
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.ledger import Ledger, PartEntry, Span
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import LANGUAGES, Prompter
from routelmt_batch.rows import EMPTY, NO_REFERENCE, NULL, TOO_LONG, UNKNOWN_LANGUAGE
from routelmt_batch.units import Lines, Unit
from routelmt_batch.workspace import AnyWorkspace

NO_TIMES = pa.chunked_array([pa.array([0.0])])  # of a part that no engine made


@dataclass(frozen=True)
class PartWriter:
    """Commits one part of a stage below `folder` and gives its receipt."""

    folder: Path
    stage: str
    prefix: str
    generation: int = 0

    def __call__(self, table: pa.Table, counts: dict[str, int], engine_seconds: pa.ChunkedArray) -> Receipt:
        name = f"{self.prefix}-{uuid.uuid4().hex}.parquet"
        path = self.folder / self.stage / name
        table = table.sort_by([("shard", "ascending"), ("row", "ascending")])
        slowest = pc.max(engine_seconds).as_py() or 0.0
        ready_at = time.time() - slowest
        write_parquet(path, table, self.stage)
        entry = PartEntry(
            self.stage,
            name,
            path.stat().st_size,
            sha256(path),
            spans(table),
            counts,
            self.generation,
        )
        return {"entry": entry, "engine_ready_at": ready_at}


def spans(table: pa.Table) -> dict[str, Span]:
    ranges = table.group_by("shard").aggregate([("row", "count"), ("row", "min"), ("row", "max")])
    return {
        line["shard"]: Span(line["row_count"], line["row_min"], line["row_max"])
        for line in ranges.to_pylist()
    }


def tokens_of(results: pa.Table, column: str) -> int:
    """Sum of a column of tokens over RESULTS that an engine gave."""
    return pc.sum(results.filter(pc.field("skip") == "")[column]).as_py() or 0


@dataclass
class LaneTime:
    """What one lane of a pass committed: rows, when its engine was ready, when its last part was there."""

    rows: int = 0
    ready_at: float = float("inf")
    done_at: float = 0.0

    def take(self, receipt: Receipt) -> None:
        self.rows += receipt["entry"].rows
        self.ready_at = min(self.ready_at, receipt["engine_ready_at"])
        self.done_at = time.time()


def run_pass(
    workspace: AnyWorkspace,
    engine: Engine,
    bars: Bars,
    name: str,
    lanes: Sequence[Lane],
    total: int,
    done: int,
    before_commit: Callable[[PartEntry], None] = lambda entry: None,
    after_commit: Callable[[], None] = lambda: None,
) -> None:
    """Run lanes as one pass over `total - done` rows, committing parts to the ledger as they come.

    `before_commit` and `after_commit` may end the job; a part that the first refuses is not committed.
    """
    if done >= total:
        return
    started = time.time()
    lane_times: defaultdict[str, LaneTime] = defaultdict(LaneTime)
    try:
        with bars.rows(name, total, done) as advance:
            for receipt in engine.run(lanes):
                entry: PartEntry = receipt["entry"]
                before_commit(entry)
                workspace.ledger.commit(entry)
                lane_times[entry.lane].take(receipt)
                advance(entry.rows)
                after_commit()
    finally:
        ready = min((lane.ready_at for lane in lane_times.values()), default=time.time())
        rows = sum(lane.rows for lane in lane_times.values())
        record_time(workspace.ledger, name, rows, started, ready - started, lane_times)


def refuse_failures(workspace: AnyWorkspace, failed: int, told: str) -> None:
    """Asked before a part is committed: what it would break the limit with is then tried again.

    Raises:
        RoutelmtError: `failed` rows are more than `run.max_failed_fraction` allows; `told` says of what.
    """
    allowed = workspace.spec.run.max_failed_fraction
    if failed > allowed * workspace.rows:
        raise RoutelmtError(
            f"{told} {failed} of {workspace.rows} rows, more than run.max_failed_fraction {allowed} allows. "
            f"Look into {workspace.folder.logs}; after mending, run the same command again"
        )


def record_time(
    ledger: Ledger,
    name: str,
    rows: int,
    started: float,
    engine_start_seconds: float = 0.0,
    lanes: Mapping[str, LaneTime] | None = None,
) -> None:
    """Put a pass's time into the ledger, and each lane's own; a resumed pass has a line for each run."""
    ledger.record(
        "pass",
        name=name,
        rows=rows,
        seconds=round(time.time() - started, 3),
        engine_start_seconds=round(engine_start_seconds, 3),
        lanes={
            name: {"rows": lane.rows, "seconds": round(lane.done_at - lane.ready_at, 3)}
            for name, lane in (lanes or {}).items()
        },
    )


def requests(
    lines: Lines,
    shard: str,
    prompter: Prompter | None,
    limit_tokens: int,
    keep: Sequence[bool] | None = None,
    needs: Sequence[str] = (),
) -> pa.Table:
    """REQUESTS for some lines of a shard: token ids, or the reason why a row is not for an engine.

    Without a prompter there are no tokens, and no row is too long. `needs=("reference",)`: a row
    without a reference is not for an engine either.
    """
    wanted = [i for i in range(len(lines.rows)) if keep is None or keep[i]]
    skips = [_skip(lines, i, needs) for i in wanted]
    good = [i for i, skip in zip(wanted, skips, strict=True) if not skip]
    tokens = iter(_tokens(lines, good, prompter))
    prompts = [[] if skip else next(tokens) for skip in skips]
    lengths = [
        None if skip or not prompter else len(prompt) for skip, prompt in zip(skips, prompts, strict=True)
    ]
    for i, length in enumerate(lengths):
        if length is not None and length > limit_tokens:
            skips[i], prompts[i] = TOO_LONG, []
    return pa.table(
        {
            "shard": [shard] * len(wanted),
            "row": [lines.rows[i] for i in wanted],
            "prompt_tokens": lengths,
            "tokenized_prompt": prompts,
            "skip": skips,
        },
        schema=REQUESTS,
    )


def blank_requests(
    unit: Unit, rows: Sequence[int], columns: Mapping[str, pa.Array], skips: Sequence[str] | None = None
) -> pa.Table:
    """REQUESTS without prompts, for a scorer that reads the columns beside them."""
    table = pa.table(
        {
            "shard": [unit.shard.name] * len(rows),
            "row": rows,
            "prompt_tokens": pa.nulls(len(rows), pa.int32()),
            "tokenized_prompt": [[]] * len(rows),
            "skip": skips if skips is not None else [""] * len(rows),
        },
        schema=REQUESTS,
    )
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def with_texts(table: pa.Table, lines: Lines) -> pa.Table:
    """REQUESTS with the text and languages beside them, for a scorer that reads those."""
    place = {row: i for i, row in enumerate(lines.rows)}
    at = [place[row] for row in table["row"].to_pylist()]
    for name, values in (
        ("source", lines.texts),
        ("source_lang", lines.source_langs),
        ("target_lang", lines.target_langs),
    ):
        table = table.append_column(name, pa.array([values[i] for i in at], pa.string()))
    return table


def _tokens(lines: Lines, places: Sequence[int], prompter: Prompter | None) -> list[list[int]]:
    if prompter is None:
        return [[] for _ in places]
    return prompter.token_ids(
        *(
            [values[i] or "" for i in places]
            for values in (lines.texts, lines.source_langs, lines.target_langs)
        )
    )


def _skip(lines: Lines, i: int, needs: Sequence[str]) -> str:
    text = lines.texts[i]
    if text is None:
        return NULL
    if not text.strip():
        return EMPTY
    if lines.source_langs[i] not in LANGUAGES or lines.target_langs[i] not in LANGUAGES:
        return UNKNOWN_LANGUAGE
    if "reference" in needs and not (lines.references[i] or "").strip():
        return NO_REFERENCE
    return ""
