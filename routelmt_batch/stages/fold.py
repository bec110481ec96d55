"""Fold: rows with the same text and languages become one call, made for the first of them.

Rows meet by a hash of 128 bits: tasks over stretches of the input send each row's hash to one of many
buckets, a task for each bucket finds the hashes that occur more than once, and sends them back to their
stretches. See follow for how the other rows get the first one's translation, and for collisions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import read_lines
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.progress import Bars
from routelmt_batch.rows import FOLDS
from routelmt_batch.spec import Input
from routelmt_batch.stages.exchange import Exchange, exchange_folder, remove_left
from routelmt_batch.stages.passes import PartWriter, part_writer, record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import requests
from routelmt_batch.stages.stretches import KEY, Stretch, keys_of, stretches
from routelmt_batch.store.ledger import PartEntry
from routelmt_batch.threads import Stop

# A row or several with the same key: `position` is that of the first, and `copies` how many they are.
_KEYS = pa.schema([*KEY, ("position", pa.int64()), ("copies", pa.int64())])
_MATCHES = pa.schema([*_KEYS, ("first", pa.int64())])


def fold(workspace: Job, engine: Engine, bars: Bars) -> None:
    """Find the rows that follow another with the same text and languages, and commit them together, once."""
    ledger = workspace.ledger
    remove_left(workspace)
    if workspace.spec.input.fold == "off" or any(ledger.events_of("fold")):
        return
    started, parts = time.time(), stretches(workspace)
    write = part_writer(ledger, FOLDS)
    with exchange_folder(workspace) as folder, bars.rows("fold", workspace.rows) as advance:
        keys = Exchange(folder, _KEYS, len(parts) + 1)
        matches = Exchange(folder, _MATCHES, len(parts))
        sent = []
        with engine.each(_Keys(workspace.spec.input, keys), parts) as files:
            for part, file in zip(parts, files, strict=True):
                sent.append(file)
                advance(part.rows)
        first = np.array([part.positions[0] for part in parts])
        with engine.each(_Matches(keys, matches, sent, first), range(len(parts))) as files:
            matched = list(files)
        with engine.each(_Folds(keys, matches, sent, matched, write), parts) as folded:
            written = [outcome for outcome in folded if outcome]
        followers = sum(rows for _, rows in written)
        ledger.record("fold", [entry for entry, _ in written], rows=workspace.rows, folded=followers)
    record_time(ledger, "fold", workspace.rows, started)
    if followers:
        bars.say(f"{followers:,} of {workspace.rows:,} rows have the text of another row", "info")


@dataclass(frozen=True)
class _Keys:
    """Sends the keys of a stretch's rows to buckets, in a task; returns the file's name. Of rows with the
    same key only the first is sent there. The others are kept for the stretch, as the last receiver: so a
    text that is everywhere does not fill its bucket. Rows that cannot be translated have no key."""

    input: Input
    keys: Exchange

    def __call__(self, stretch: Stretch, stop: Stop) -> str:
        tables = [_KEYS.empty_table()]
        for unit, position in zip(stretch.units, stretch.positions, strict=True):
            for lines in read_lines(unit, self.input):
                stop()
                rows = requests(lines, unit.shard.name)
                rows = rows.filter(pc.equal(rows["skip"], ""))
                tables.append(_keys(rows, position - unit.first_row))
        table = pa.concat_tables(tables)
        # Stable: rows with the same key stay in the order of the input.
        table = table.take(np.lexsort((table["low"].to_numpy(), table["high"].to_numpy())))
        starts = _starts(table)
        copies = np.zeros(table.num_rows, np.int64)
        copies[starts] = np.diff(starts, append=table.num_rows)
        buckets = self.keys.receivers - 1
        to = np.where(copies > 0, table["high"].to_numpy() % np.uint64(buckets), buckets).astype(np.int64)
        return self.keys.send(table.set_column(3, "copies", pa.array(copies)), to)


def _keys(rows: pa.Table, before: int) -> pa.Table:
    """The keys of some rows of a shard; `before` rows of the job come before the shard's first."""
    position = rows["row"].to_numpy() + before
    return pa.table([*keys_of(rows), position, np.ones(len(position), np.int64)], schema=_KEYS)


def _starts(keys: pa.Table) -> npt.NDArray[np.int64]:
    """Where each key begins among sorted keys."""
    high, low = keys["high"].to_numpy(), keys["low"].to_numpy()
    differs = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(high)), bool), differs]))


@dataclass(frozen=True)
class _Matches:
    """Finds the keys of a bucket that several rows have, in a task, and sends each of their lines to the
    stretch that it came from, with the first row of the key and, if it is that, the rows that have the
    key."""

    keys: Exchange
    matches: Exchange
    sent: Sequence[str]
    first_positions: npt.NDArray[np.int64]  # of the stretches

    def __call__(self, bucket: int, stop: Stop) -> str:
        table = self.keys.receive(self.sent, bucket, stop)
        table = table.take(np.lexsort([table[name].to_numpy() for name in ("position", "low", "high")]))
        starts = _starts(table)
        lines = np.diff(starts, append=table.num_rows)
        copies, position = table["copies"].to_numpy(), table["position"].to_numpy()
        of_key = np.add.reduceat(copies, starts) if len(starts) else copies
        first = np.repeat(position[starts], lines)
        total = np.where(position == first, np.repeat(of_key, lines), 0)
        found = pa.table(
            [table["high"], table["low"], table["position"], total, first], schema=_MATCHES
        ).filter(pa.array(np.repeat(of_key > 1, lines)))
        stretch = np.searchsorted(self.first_positions, found["position"].to_numpy(), "right") - 1
        return self.matches.send(found, stretch)


@dataclass(frozen=True)
class _Folds:
    """Writes the part of a stretch, in a task, and counts its rows that follow another. It is None if each
    row is the only one of its call."""

    keys: Exchange
    matches: Exchange
    sent: Sequence[str]
    matched: Sequence[str]
    write: PartWriter

    def __call__(self, stretch: Stretch, stop: Stop) -> tuple[PartEntry, int] | None:
        matched = self.matches.receive(self.matched, stretch.number, stop)
        kept = self.keys.receive([self.sent[stretch.number]], self.keys.receivers - 1, stop)
        others = kept.join(matched.select(["high", "low", "first"]), ["high", "low"], join_type="inner")
        columns = ["position", "copies", "first"]
        table = pa.concat_tables([matched.select(columns), others.select(columns)])
        if not table.num_rows:
            return None
        is_first = pc.equal(table["position"], table["first"])
        table = table.set_column(2, "first", pc.if_else(is_first, None, table["first"]))
        return self.write(_by_row(stretch, table)), table["first"].length() - table["first"].null_count


def _by_row(stretch: Stretch, folded: pa.Table) -> pa.Table:
    """Lines of FOLDS, given the positions of their rows."""
    position = folded["position"].to_numpy()
    unit = np.searchsorted(stretch.positions, position, "right") - 1
    names = pa.array([unit.shard.name for unit in stretch.units], pa.string())
    row = position - np.array(stretch.positions)[unit] + np.array([u.first_row for u in stretch.units])[unit]
    columns: dict[str, Any] = {"shard": names.take(pa.array(unit)), "row": row}
    columns |= {name: folded[name] for name in ("position", "first", "copies")}
    return pa.table(columns, schema=FOLDS.schema)
