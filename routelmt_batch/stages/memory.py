"""The translation memory: one store of scores and translations that jobs share, night after night.

It is a cache: a text may be in it twice, or be lost, and no job is wrong for it. So it needs no log and no
lock. It is divided by the hash of the text. At its end a job writes each division again, as one file with
what was there before and its own rows, and removes the files that it read. Of two jobs at once both files
stay, until the next job joins them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import OutputError, RoutelmtError, WorkChanged
from routelmt_batch.files.location import Location, Replaced
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import write_parquet
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LARGE, SMALL
from routelmt_batch.stages.earlier import SCORE, depends_on, output_units
from routelmt_batch.stages.exchange import Exchange, exchange_folder
from routelmt_batch.stages.offers import OFFERED, Offer, Offerer, send_by_key
from routelmt_batch.stages.outputs import current_outputs
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.stretches import KEY, together
from routelmt_batch.store.folder import read_json
from routelmt_batch.store.log import TakenOver
from routelmt_batch.threads import Stop

_DIVISION_ROWS = 1 << 18  # of the first job that writes it
_LAYOUT = "memory.json"
_MADE = pa.schema([*OFFERED, ("score_from", pa.string()), ("translation_from", pa.string())])
_ONE = [*(name for name, _ in KEY), "route", "score_from", "translation_from"]  # there is one row of these


def divisions(memory: Location) -> list[list[Location]]:
    """The files of each division; none if there is no memory yet.

    Raises:
        OutputError: it is not known how many divisions it has.
    """
    if not (memory / _LAYOUT).exists():
        return []
    found: dict[Location, list[Location]] = {_division(memory, n): [] for n in range(_count(memory))}
    for file in memory.below():
        if file.parent in found and file.name.endswith(".parquet"):
            found[file.parent].append(file)
    return list(found.values())


def _division(memory: Location, number: int) -> Location:
    return memory / f"division={number}"


def made_from(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A hash of all that a score, or a translation of either model, depends on besides the text."""
    return {
        kind: hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
        for kind, values in depends_on(fingerprints).items()
    }


@dataclass(frozen=True)
class Recaller:
    """Sends what a division has that still stands to buckets, in a task. Returns the file's name, and how
    many files could not be read. The memory is the earlier job `job`."""

    offered: Exchange
    job: int
    made_from: Mapping[str, str]

    def __call__(self, files: Sequence[Location], stop: Stop) -> tuple[str, int]:
        table, read = _read(files, stop)
        scored = pc.equal(table["score_from"], self.made_from[SCORE])
        mine = pc.if_else(pc.equal(table["route"], LARGE), self.made_from[LARGE], self.made_from[SMALL])
        translated = pc.fill_null(pc.equal(table["translation_from"], mine), False)
        columns = {name: table[name] for name in OFFERED.names} | {
            "job": np.full(table.num_rows, self.job, np.int32),
            "gain": pc.if_else(scored, table["gain"], None),
            "too_long": pc.and_(table["too_long"], scored),
            "route": pc.if_else(translated, table["route"], None),
        }
        return send_by_key(self.offered, pa.table(columns, schema=OFFERED)), len(files) - len(read)


def _read(files: Sequence[Location], stop: Stop) -> tuple[pa.Table, list[Location]]:
    """The rows of some files, and those of them that could be read: others are damaged, or were removed by
    another job."""
    tables, read = [_MADE.empty_table()], []
    for file in files:
        stop()
        try:
            tables.append(pq.read_table(pa.BufferReader(file.read_bytes())).cast(_MADE))
        except (OSError, pa.ArrowException, ValueError):
            continue
        read.append(file)
    return pa.concat_tables(tables), read


def remember(workspace: Job, engine: Engine, bars: Bars) -> None:
    """Add the job's scores and translations to the memory that its spec names. The job is complete without,
    so an error is only a warning."""
    uri = workspace.spec.translation_memory
    if uri is None or any(workspace.ledger.events_of("memory")):
        return
    try:
        _remember(workspace, locate(uri), engine, bars)
    except TakenOver:
        raise
    except (RoutelmtError, OSError) as error:
        bars.warn(f"translation_memory {uri}: could not be written: {error}. The job is complete without it")


def _remember(workspace: Job, memory: Location, engine: Engine, bars: Bars) -> None:
    started, ledger = time.time(), workspace.ledger
    count = _laid_out(memory, workspace.rows)
    units = output_units(workspace.folder, current_outputs(ledger), engine)
    offers = [Offer(0, workspace.spec.input.texts, some) for some in together(units)]
    known = divisions(memory)
    with exchange_folder(workspace) as folder, bars.rows("memory", count, unit="divisions") as advance:
        own = Exchange(folder, OFFERED, count)
        with engine.each(Offerer(own), offers) as files:
            sent = list(files)
        writer = _Rememberer(memory, own, sent, made_from(workspace.fingerprints))
        rows = 0
        with engine.each(writer, enumerate(known)) as written:
            for number in written:
                rows += number
                advance(1)
    ledger.record("memory", uri=str(memory), rows=rows)
    record_time(ledger, "memory", workspace.rows, started)


def _laid_out(memory: Location, rows: int) -> int:
    """The number of divisions; the first job decides it."""
    layout = memory / _LAYOUT
    if not layout.exists():
        with contextlib.suppress(Replaced):  # by another job, at this moment
            layout.create(json.dumps({"divisions": max(1, math.ceil(rows / _DIVISION_ROWS))}).encode())
    return _count(memory)


def _count(memory: Location) -> int:
    try:
        return int(read_json(memory / _LAYOUT)["divisions"])
    except (WorkChanged, KeyError, TypeError, ValueError):
        raise OutputError(
            f"translation_memory {memory}: its {_LAYOUT} is damaged. Remove the folder, and this job begins "
            "a new memory; or leave the memory out"
        ) from None


@dataclass(frozen=True)
class _Rememberer:
    """Writes a division again with the job's own rows, in a task; returns how many rows it has."""

    memory: Location
    own: Exchange
    sent: Sequence[str]
    made_from: Mapping[str, str]

    def __call__(self, division: tuple[int, Sequence[Location]], stop: Stop) -> int:
        number, files = division
        own = self.own.receive(self.sent, number, stop)
        made = pc.if_else(pc.equal(own["route"], LARGE), self.made_from[LARGE], self.made_from[SMALL])
        own = own.append_column("score_from", pa.array([self.made_from[SCORE]] * own.num_rows, pa.string()))
        own = own.append_column("translation_from", made)
        before, read = _read(files, stop)
        table = pa.concat_tables([own.cast(_MADE), before])
        place = table.select(_ONE).append_column("at", pa.array(np.arange(table.num_rows)))
        first = place.group_by(_ONE).aggregate([("at", "min")])["at_min"]
        table = table.take(first.combine_chunks().sort())
        if table.num_rows:
            name = f"{uuid.uuid4().hex}.parquet"
            write_parquet(_division(self.memory, number) / name, table, "memory")
        for file in read:
            file.remove()
        return int(table.num_rows)
