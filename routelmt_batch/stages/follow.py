"""Follow: rows that were folded get the output of the row that they follow, wherever in the input that is.

Tasks over stretches send the outputs of calls for several rows to buckets, and ask there for those that their
own rows follow; a task for each bucket answers. Texts are compared before a row gets another's translation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import read_lines
from routelmt_batch.engines.lanes import Engine, Mask
from routelmt_batch.progress import Bars
from routelmt_batch.rows import FAILED, FOLDS, FOLLOWERS, HASH_COLLISION, OUTPUT_FIELDS
from routelmt_batch.spec import Input
from routelmt_batch.stages.exchange import Exchange, exchange_folder
from routelmt_batch.stages.passes import PartWriter, part_writer, record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.stretches import TEXTS, Work, stretches, work_of
from routelmt_batch.stages.work import UnitWork
from routelmt_batch.store.ledger import PartEntry
from routelmt_batch.threads import Stop

_OUTPUT = (*OUTPUT_FIELDS, FOLLOWERS.schema.field("doubts"))
_PART_ROWS = 65_536

# The output of a call, with the position of its row and what was translated.
_CALLS = pa.schema([("first", pa.int64()), *((name, pa.large_string()) for name in TEXTS), *_OUTPUT])
# A call whose output a stretch needs.
_WANTED = pa.schema([("first", pa.int64()), ("stretch", pa.int64())])

# Gives the output of a unit's rows: the columns of OUTPUT_FIELDS, and `doubts`.
Outputs = Callable[[UnitWork], pa.Table]


def follow(workspace: Job, outputs: Outputs, engine: Engine, bars: Bars) -> None:
    """Commit the output of every row that follows another, together, once for each `--retry-failed`.

    Args:
        outputs: gives the output of the other rows. It is pickled.
    """
    ledger = workspace.ledger
    done = any(event["generation"] == ledger.generation for event in ledger.events_of("followers"))
    if done or not workspace.folded_rows:
        return
    started, parts = time.time(), stretches(workspace)
    write = part_writer(ledger, FOLLOWERS, generation=ledger.generation)
    with (
        exchange_folder(workspace) as folder,
        bars.rows("copy to folded rows", workspace.folded_rows) as advance,
    ):
        calls, wanted, answers = (
            Exchange(folder, schema, len(parts)) for schema in (_CALLS, _WANTED, _CALLS)
        )
        with engine.each(
            _Sender(workspace.spec.input, outputs, calls, wanted), work_of(workspace, parts)
        ) as files:
            sent = list(files)
        with engine.each(_Router(calls, wanted, answers, sent), range(len(parts))) as files:
            answered = list(files)
        entries: list[PartEntry] = []
        writer = _Writer(workspace.spec.input, answers, answered, write)
        with engine.each(writer, work_of(workspace, parts, [FOLDS])) as written:
            for some in written:
                entries += some
                advance(sum(entry.rows for entry in some))
        ledger.record("followers", entries, generation=ledger.generation)
    record_time(ledger, "copy to folded rows", workspace.folded_rows, started)


@dataclass(frozen=True)
class _Sender:
    """Sends, in a task, the outputs of a stretch's calls for several rows, and asks for those that its rows
    follow. Returns the names of both files."""

    input: Input
    outputs: Outputs
    calls: Exchange
    wanted: Exchange

    def __call__(self, work: Work, stop: Stop) -> tuple[str, str]:
        tables, firsts = [_CALLS.empty_table()], [np.zeros(0, np.int64)]
        for unit in work.units:
            stop()
            folds = unit.committed(FOLDS)
            follows = pc.is_valid(folds["first"])
            firsts.append(folds.filter(follows)["first"].to_numpy())
            leads = folds.filter(pc.invert(follows))
            if leads.num_rows:
                at = pa.array(unit.offsets(leads))
                texts = _texts(unit, unit.mask(leads), self.input, stop)
                output = self.outputs(unit).select([field.name for field in _OUTPUT]).take(at)
                columns = [leads["position"], *texts, *output.columns]
                tables.append(pa.table(columns, names=_CALLS.names).cast(_CALLS))
        table, first = pa.concat_tables(tables), np.unique(np.concatenate(firsts))
        asked = pa.table([first, np.full(len(first), work.stretch.number)], schema=_WANTED)
        return (
            self.calls.send(table, table["first"].to_numpy() % self.calls.receivers),
            self.wanted.send(asked, first % self.wanted.receivers),
        )


def _texts(work: UnitWork, wanted: Mask, spec: Input, stop: Stop) -> list[pa.Array]:
    """Text, source and target language of the wanted rows of a unit, in row order."""
    columns: tuple[list[str | None], ...] = ([], [], [])
    if wanted.any():
        for lines in read_lines(work.unit, spec):
            stop()
            for i in np.flatnonzero(wanted[np.array(lines.rows) - work.unit.first_row]):
                for column, values in zip(
                    columns, (lines.texts, lines.source_langs, lines.target_langs), strict=True
                ):
                    column.append(values[i])
    return [pa.array(column, pa.large_string()) for column in columns]


@dataclass(frozen=True)
class _Router:
    """Sends the outputs in a bucket to the stretches that asked for them, in a task."""

    calls: Exchange
    wanted: Exchange
    answers: Exchange
    sent: Sequence[tuple[str, str]]

    def __call__(self, bucket: int, stop: Stop) -> str:
        calls = self.calls.receive((calls for calls, _ in self.sent), bucket, stop).sort_by("first")
        wanted = self.wanted.receive((wanted for _, wanted in self.sent), bucket, stop)
        at = np.searchsorted(calls["first"].to_numpy(), wanted["first"].to_numpy())
        return self.answers.send(calls.take(at), wanted["stretch"].to_numpy())


@dataclass(frozen=True)
class _Writer:
    """Writes the rows of a stretch that follow others, in a task."""

    input: Input
    answers: Exchange
    answered: Sequence[str]
    write: PartWriter

    def __call__(self, work: Work, stop: Stop) -> list[PartEntry]:
        calls = self.answers.receive(self.answered, work.stretch.number, stop).sort_by("first")
        return [
            self.write(rows.slice(start, _PART_ROWS))
            for unit in work.units
            for rows in self._followers(unit, calls, stop)
            for start in range(0, rows.num_rows, _PART_ROWS)
        ]

    def _followers(self, work: UnitWork, calls: pa.Table, stop: Stop) -> Iterator[pa.Table]:
        folds = work.committed(FOLDS)
        folds = folds.filter(pc.is_valid(folds["first"]))
        if not folds.num_rows:
            return
        mine = calls.take(np.searchsorted(calls["first"].to_numpy(), folds["first"].to_numpy()))
        texts = _texts(work, work.mask(folds), self.input, stop)
        same = np.ones(folds.num_rows, bool)
        for name, text in zip(TEXTS, texts, strict=True):
            same &= pc.equal(text, mine[name].combine_chunks()).to_numpy(zero_copy_only=False)
        columns = {field.name: mine[field.name] for field in _OUTPUT} | _collided(mine, same)
        yield pa.table({"shard": folds["shard"], "row": folds["row"], **columns}, schema=FOLLOWERS.schema)


def _collided(rows: pa.Table, same: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """The columns that change where texts differ: such a row has no translation."""
    if same.all():
        return {}
    instead = {"status": FAILED, "reason": HASH_COLLISION}
    return {
        field.name: pc.if_else(
            pa.array(same), rows[field.name], pa.scalar(instead.get(field.name), field.type)
        )
        for field in _OUTPUT
    }
