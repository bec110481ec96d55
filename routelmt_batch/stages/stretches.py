"""Stretches of the input, for tasks that join rows by their texts, and the keys of these rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Mask
from routelmt_batch.rows import Stage
from routelmt_batch.stages.work import OF_JOB, UnitWork, work_on
from routelmt_batch.store.workspace import AnyWorkspace

Integers = npt.NDArray[np.int64]
_ROWS = 1 << 19
_BYTES = 256 << 20  # of the shards' files, for corpora of long rows
TEXTS = ("source", "source_lang", "target_lang")
KEY = (("high", pa.uint64()), ("low", pa.uint64()))


@dataclass(frozen=True)
class Stretch:
    """Consecutive units that one task works on: their place among the stretches, and the position of each
    unit's first row among all rows of the job."""

    number: int
    units: Sequence[Unit]
    positions: Sequence[int]

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


@dataclass(frozen=True)
class Work:
    """A stretch, and its units with their committed parts."""

    stretch: Stretch
    units: Sequence[UnitWork]


def stretches(workspace: AnyWorkspace) -> list[Stretch]:
    """All units of a job, in order."""
    return [
        Stretch(number, units, [workspace.positions[unit.shard.name] + unit.first_row for unit in units])
        for number, units in enumerate(together(workspace.units))
    ]


def together(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Units in order, as many together as one task holds in memory."""
    group: list[Unit] = []
    rows, size = 0, 0.0
    for unit in units:
        bytes_of_unit = unit.shard.size_bytes * unit.rows / max(unit.shard.rows, 1)
        if group and (rows + unit.rows > _ROWS or size + bytes_of_unit > _BYTES):
            yield group
            group, rows, size = [], 0, 0.0
        group.append(unit)
        rows, size = rows + unit.rows, size + bytes_of_unit
    if group:
        yield group


def work_of(
    workspace: AnyWorkspace, parts: Iterable[Stretch], stages: Sequence[Stage] = OF_JOB
) -> Iterator[Work]:
    """Stretches with what is committed now."""
    return (Work(part, [work_on(workspace, unit, stages) for unit in part.units]) for part in parts)


def keys_of(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """A hash of 128 bits of each row's text and languages, in two halves."""
    columns = (rows[name].to_pylist() for name in TEXTS)
    digests = b"".join(
        hashlib.blake2b("\0".join(row).encode(), digest_size=16).digest()
        for row in zip(*columns, strict=True)
    )
    high, low = np.frombuffer(digests, np.uint64).reshape(-1, 2).T
    return pa.array(high), pa.array(low)


def found_in(known: Integers, wanted: Integers) -> tuple[Mask, Integers]:
    """Which of the wanted numbers are among the known ones, which are in order, and where."""
    if not len(known):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.asarray(known[at] == wanted), at
