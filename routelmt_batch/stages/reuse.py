"""Reuse: scores and translations of earlier jobs are committed as if the engines had just made them.

They are joined by a hash of text and languages (see fold), through files between tasks (see exchange), and
the texts are compared. So all later stages find them as committed rows, and the earlier jobs may be deleted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import read_lines
from routelmt_batch.directions import numbers
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.files.location import Location
from routelmt_batch.files.uris import locate
from routelmt_batch.progress import Bars, counted
from routelmt_batch.prompts import Prompter
from routelmt_batch.rows import (
    FOLDS,
    LARGE,
    OK,
    SCORES,
    SMALL,
    TOO_LONG,
    TRANSLATIONS,
    TRUNCATED,
)
from routelmt_batch.spec import Input
from routelmt_batch.stages.earlier import KINDS, SCORE, Earlier, earlier_jobs
from routelmt_batch.stages.exchange import Exchange, exchange_folder
from routelmt_batch.stages.memory import Recaller, divisions, made_from
from routelmt_batch.stages.offers import OFFERED, VALUES, Offer, Offerer, send_by_key
from routelmt_batch.stages.passes import PartWriter, part_writer, record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import requests
from routelmt_batch.stages.stretches import (
    KEY,
    TEXTS,
    Stretch,
    Work,
    found_in,
    keys_of,
    stretches,
    together,
    work_of,
)
from routelmt_batch.store.ledger import PartEntry
from routelmt_batch.threads import Stop

_PART_ROWS = 65_536
_WANTED = pa.schema([*KEY, ("position", pa.int64())])
_FOUND = pa.schema([("position", pa.int64()), ("kind", pa.string()), *VALUES])
Counts = Counter[tuple[int, str]]  # by earlier job and kind
Column = Any  # an array of pyarrow, chunked or not


def reuse(workspace: Job, engine: Engine, bars: Bars) -> None:
    """Commit what earlier jobs have, together, once; from then on the job does not need them.

    Raises:
        OutputError: see earlier.earlier_jobs.
    """
    ledger, spec = workspace.ledger, workspace.spec
    if not (spec.reuse or spec.translation_memory) or any(ledger.events_of("reuse")):
        return
    started, parts = time.time(), stretches(workspace)
    jobs = earlier_jobs(workspace, engine, bars)
    offers = [
        Offer(place, job.texts, units) for place, job in enumerate(jobs) for units in together(job.units)
    ]
    memory = locate(spec.translation_memory) if spec.translation_memory else None
    remembered = divisions(memory) if memory else []
    writers = (
        part_writer(ledger, SCORES),
        *(part_writer(ledger, TRANSLATIONS, route) for route in (SMALL, LARGE)),
    )
    with exchange_folder(workspace) as folder, bars.rows("reuse", workspace.rows) as advance:
        buckets = len(parts) + len(offers) + len(remembered)
        wanted, offered = Exchange(folder, _WANTED, buckets), Exchange(folder, OFFERED, buckets)
        found = Exchange(folder, _FOUND, len(parts))
        with engine.each(_Asker(spec.input, wanted), work_of(workspace, parts, [FOLDS])) as files:
            asked = list(files)
        with engine.each(Offerer(offered), offers) as files:
            given = list(files)
        recaller = Recaller(offered, len(jobs), made_from(workspace.fingerprints))
        with engine.each(recaller, remembered) as recalled:
            for file, lost in recalled:
                given.append(file)
                if lost:
                    bars.warn(f"translation_memory {memory}: {counted(lost, 'file')} could not be read")
        first = np.array([part.positions[0] for part in parts])
        matcher = _Matcher(wanted, offered, found, asked, given, _usable(jobs), first)
        refused: Counts = Counter()
        matched = []
        with engine.each(matcher, range(buckets)) as outcomes:
            for file, counts in outcomes:
                matched.append(file)
                refused.update(counts)
        entries: list[PartEntry] = []
        taken: Counts = Counter()
        keeper = _Keeper(spec.input, workspace.recipe.router.prompter, found, matched, writers)
        with engine.each(keeper, parts) as written:
            for part, (some, counts) in zip(parts, written, strict=True):
                entries += some
                taken.update(counts)
                advance(part.rows)
        ledger.record("reuse", entries, jobs=_summary(jobs, memory, taken, refused))
    record_time(ledger, "reuse", workspace.rows, started)


def _usable(jobs: Sequence[Earlier]) -> dict[str, list[bool]]:
    """By kind, which jobs have what still stands. The memory, after them, offers nothing else."""
    return {kind: [*(job.is_usable(kind) for job in jobs), True] for kind in KINDS}


def _summary(
    jobs: Sequence[Earlier], memory: Location | None, taken: Counts, refused: Counts
) -> list[dict[str, object]]:
    """What the ledger keeps of each job: what was taken, and what could not be because of what changed."""
    lines: list[dict[str, object]] = [
        {
            "output": job.output,
            "success": job.success,
            "taken": {kind: taken[place, kind] for kind in KINDS},
            "changed": {
                kind: {"calls": refused[place, kind], "because": list(job.changed[kind])}
                for kind in KINDS
                if not job.is_usable(kind)
            },
        }
        for place, job in enumerate(jobs)
    ]
    if memory:
        of_memory = {kind: taken[len(jobs), kind] for kind in KINDS}
        lines.append({"output": str(memory), "success": None, "taken": of_memory, "changed": {}})
    return lines


@dataclass(frozen=True)
class _Asker:
    """Sends the keys of a stretch's calls to buckets, in a task; returns the file's name."""

    input: Input
    wanted: Exchange

    def __call__(self, work: Work, stop: Stop) -> str:
        tables = [_WANTED.empty_table()]
        for unit, position in zip(work.units, work.stretch.positions, strict=True):
            is_call = unit.copies() > 0
            for lines in read_lines(unit.unit, self.input):
                stop()
                rows = requests(
                    lines, unit.unit.shard.name, is_call[np.array(lines.rows) - unit.unit.first_row]
                )
                rows = rows.filter(pc.equal(rows["skip"], ""))
                at = rows["row"].to_numpy() - unit.unit.first_row + position
                tables.append(pa.table([*keys_of(rows), at], schema=_WANTED))
        return send_by_key(self.wanted, pa.concat_tables(tables))


@dataclass(frozen=True)
class _Matcher:
    """Joins a bucket's wanted and offered rows, in a task. For each kind the first job that has it counts, of
    those of which it is `usable`; the finds go to the stretches that asked. Returns the file's name, and
    counts by job and kind what could have been taken, had nothing changed."""

    wanted: Exchange
    offered: Exchange
    found: Exchange
    asked: Sequence[str]
    given: Sequence[str]
    usable: dict[str, list[bool]]
    first_positions: npt.NDArray[np.int64]  # of the stretches

    def __call__(self, bucket: int, stop: Stop) -> tuple[str, Counts]:
        wanted = self.wanted.receive(self.asked, bucket, stop)
        offered = self.offered.receive(self.given, bucket, stop).sort_by("job")
        tables, refused = [_FOUND.empty_table()], Counter[tuple[int, str]]()
        for kind in KINDS:
            of_kind = offered.filter(_has(offered, kind))
            may = np.array(self.usable[kind], bool)[of_kind["job"].to_numpy()]
            position, rows = _joined(wanted, of_kind.filter(pa.array(may)))
            kinds = pa.array([kind] * len(position), pa.string())
            values = [rows[name] for name, _ in VALUES]
            tables.append(pa.table([position, kinds, *values], schema=_FOUND))
            left = wanted.filter(pc.invert(pc.is_in(wanted["position"], pa.array(position))))
            _, others = _joined(left, of_kind.filter(pa.array(~may)))
            refused.update((job, kind) for job in others["job"].to_pylist())
        table = pa.concat_tables(tables)
        stretch = np.searchsorted(self.first_positions, table["position"].to_numpy(), "right") - 1
        return self.found.send(table, stretch), refused


def _has(offered: pa.Table, kind: str) -> pa.ChunkedArray:
    if kind == SCORE:
        return pc.or_(pc.is_valid(offered["gain"]), offered["too_long"])
    return pc.fill_null(pc.equal(offered["route"], kind), False)


def _joined(wanted: pa.Table, offered: pa.Table) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """The positions whose key is offered, and for each the first row that offers it."""
    index = offered.select(["high", "low"]).append_column("at", pa.array(np.arange(offered.num_rows)))
    firsts = index.group_by(["high", "low"]).aggregate([("at", "min")])
    pairs = wanted.join(firsts, ["high", "low"], join_type="inner")
    return pairs["position"].to_numpy(), offered.take(pairs["at_min"])


@dataclass(frozen=True)
class _Keeper:
    """Writes a stretch's rows that need no engine, in a task: what was found, and rows that no model is
    given. Returns the parts, and counts what was taken by job and kind."""

    input: Input
    prompter: Prompter | None
    found: Exchange
    matched: Sequence[str]
    writers: Sequence[PartWriter]  # of scores, small and large translations

    def __call__(self, stretch: Stretch, stop: Stop) -> tuple[list[PartEntry], Counts]:
        found = self.found.receive(self.matched, stretch.number, stop).sort_by("position")
        by_kind = {kind: found.filter(pc.equal(found["kind"], kind)) for kind in KINDS}
        tables: dict[str, list[pa.Table]] = {kind: [] for kind in KINDS}
        taken: Counts = Counter()
        for unit, position in zip(stretch.units, stretch.positions, strict=True):
            for lines in read_lines(unit, self.input):
                stop()
                rows = requests(lines, unit.shard.name)
                skipped = rows.filter(pc.not_equal(rows["skip"], ""))
                tables[SCORE].append(_scores(skipped, skipped["skip"]))
                for kind in KINDS:
                    mine, values = _same(rows, by_kind[kind], position - unit.first_row)
                    known = values.filter(pc.invert(values["too_long"])) if kind == SCORE else values
                    taken.update((job, kind) for job in known["job"].to_pylist())
                    tables[kind].append(
                        self._scored(mine, values) if kind == SCORE else _translated(mine, values, kind)
                    )
        entries = [
            entry
            for kind, write in zip(KINDS, self.writers, strict=True)
            for entry in _written(pa.concat_tables(tables[kind]), write)
        ]
        return entries, taken

    def _scored(self, rows: pa.Table, values: pa.Table) -> pa.Table:
        tokens: list[int | None] = [None] * rows.num_rows
        if self.prompter:
            columns = (rows[name].to_pylist() for name in TEXTS)
            tokens = [len(ids) for ids in self.prompter.token_ids(*columns)]
        reason = pc.if_else(values["too_long"], TOO_LONG, None)
        return _scores(rows, reason, values["gain"], pa.array(tokens, pa.int32()))


def _same(rows: pa.Table, found: pa.Table, before: int) -> tuple[pa.Table, pa.Table]:
    """The rows for which something with the same text and languages was found, and what. `found` is in the
    order of positions; `before` rows of the job come before the first of their shard."""
    position, known = rows["row"].to_numpy() + before, found["position"].to_numpy()
    is_known, at = found_in(known, position)
    mine, values = rows.filter(pa.array(is_known)), found.take(at[is_known])
    same = np.ones(mine.num_rows, bool)
    for name in TEXTS:
        text = mine[name].cast(pa.large_string())
        same &= pc.equal(text, values[name]).to_numpy()
    return mine.filter(pa.array(same)), values.filter(pa.array(same))


def _scores(rows: pa.Table, reason: Column, gain: Column = None, tokens: Column = None) -> pa.Table:
    size = rows.num_rows
    columns = {
        "shard": rows["shard"],
        "row": rows["row"],
        "gain": pa.nulls(size, pa.float32()) if gain is None else gain,
        "prompt_tokens": pa.nulls(size, pa.int32()) if tokens is None else tokens,
        "direction": numbers(rows["source_lang"], rows["target_lang"]),
        "reason": reason.cast(pa.string()),
    }
    return pa.table(columns, schema=SCORES.schema)


def _translated(rows: pa.Table, values: pa.Table, route: str) -> pa.Table:
    """Translations without the number of their prompt's tokens, because no model has read them."""
    size = rows.num_rows
    columns = {
        "shard": rows["shard"],
        "row": rows["row"],
        "route": pa.array([route] * size, pa.string()),
        "translation": values["translation"].cast(pa.string()),
        "prompt_tokens": pa.nulls(size, pa.int32()),
        "output_tokens": values["output_tokens"],
        "status": pa.array([OK] * size, pa.string()),
        "reason": pc.if_else(values["truncated"], TRUNCATED, None).cast(pa.string()),
    }
    return pa.table(columns, schema=TRANSLATIONS.schema)


def _written(table: pa.Table, write: PartWriter) -> Iterator[PartEntry]:
    for start in range(0, table.num_rows, _PART_ROWS):
        part = table.slice(start, _PART_ROWS)
        tokens = {"prompt_tokens": pc.sum(part["prompt_tokens"]).as_py() or 0}
        yield replace(write(part), sums=tokens)
