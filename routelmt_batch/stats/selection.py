"""Exact global top-k over gains that fit in no process, in two reads of committed parts.

The first read counts the gains in 2^22 bins of neighbouring values; the second collects the rows of the bins
in which the cuts lie. The order is total: higher gain first (-0 counts as +0), then shard name as UTF-8
bytes, then row. A cut is the last key that is selected, so a row's own key shows whether it is selected. It
knows gains, shards and rows, not what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
_BIN_BITS = 22
_BINS = 1 << _BIN_BITS
_SHIFT = np.uint32(32 - _BIN_BITS)
_BEYOND = 1 << 62  # past every rank and row
# Rows that the second read keeps at a time, at 24 bytes each. It exceeds them only if many gains are equal.
_MOST_ROWS = 1 << 22
_KEEP, _GROUP = 1, 2  # what the second read does with the rows of a bin


@dataclass(frozen=True)
class Gains:
    """Some rows of the corpus: gain (float32, NaN where there is none), shard rank, row index, and optionally
    a weight that is summed over the selected rows (prompt tokens).

    A shard's rank is its place among the job's shards ordered by name as UTF-8 bytes.
    """

    gain: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    weight: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Cut:
    """The last row that is selected. `key` is `order_key(gain)`."""

    key: int
    rank: int
    row: int

    @classmethod
    def at_least(cls, gain: float) -> Cut:
        """The cut that selects every row with at least this gain (as float32), in any shard."""
        (key,) = order_key(np.array([gain], np.float32))
        return cls(int(key), _BEYOND, _BEYOND)

    @property
    def gain(self) -> float:
        """The gain of the last row that is selected: the threshold."""
        return float(_from_key(np.array([self.key], np.uint32))[0])

    def admits(self, gains: Gains) -> npt.NDArray[np.bool_]:
        """Which rows are selected; a row without a gain never is."""
        key = order_key(gains.gain)
        earlier = (gains.rank < self.rank) | ((gains.rank == self.rank) & (gains.row <= self.row))
        inside = (key < self.key) | ((key == self.key) & earlier)
        return np.asarray(inside & ~np.isnan(gains.gain))


def order_key(gain: npt.NDArray[np.float32]) -> Keys:
    """uint32 keys that ascend as gains descend; equal for -0 and +0."""
    # Adding 0 makes -0 a +0. Then all bits of a positive number but the sign are inverted.
    bits = (gain.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)
    return (bits ^ (~(bits >> 31) & 0x7FFFFFFF)).view(np.uint32)


def _from_key(key: Keys) -> npt.NDArray[np.float32]:
    ascending = ~key
    negative = ascending >> np.uint32(31) == 0
    bits = np.where(negative, ~ascending, ascending & np.uint32((1 << 31) - 1))
    return bits.astype(np.uint32).view(np.float32)


class Parts(Protocol):
    """Reads the rows, in parts; each call gives the same rows, in any order."""

    def __call__(self, keys: bool = True, ranks: Collection[int] | None = None) -> Iterable[Gains]:
        """
        Args:
            keys: without them, `rank` and `row` may be left out (empty).
            ranks: parts without rows of these shards may be left out.
        """
        ...


class Selected(NamedTuple):
    """The first rows of the order: the cut (None: no row), how many they are, their summed gain (infinite
    ones left out) and weight."""

    cut: Cut | None
    rows: int
    gain: float
    weight: int

    @property
    def threshold(self) -> float | None:
        """The gain of the last row; None without rows."""
        return self.cut.gain if self.cut else None


class GainOrder:
    """All rows in order, without holding them: how many gains lie in each bin, and their sums.

    A bin holds gains of one sign and exponent, so its float64 sum is exact up to 2^29 rows: no sum depends on
    the order of the parts.

    Args:
        parts: read once here, and once for each `select`.
        at_least: count the rows with at least this gain (as float32).
        most_rows: the rows that `select` keeps at a time.

    Attributes:
        rows: rows with a gain.
        reached: rows with a gain of `at_least`; without it, all rows with a gain.
    """

    def __init__(self, parts: Parts, at_least: float | None = None, most_rows: int = _MOST_ROWS) -> None:
        self.parts, self.most_rows = parts, most_rows
        self.rows = self.reached = 0
        self._counts, self._gains, self._weights = (
            np.zeros(_BINS, kind) for kind in (np.int64, np.float64, np.int64)
        )
        floor = np.float32(-np.inf if at_least is None else at_least)
        for part in parts(keys=False):
            gain, weight = part.gain, _weights(part)
            if (missing := np.isnan(gain)).any():
                gain, weight = gain[~missing], weight[~missing]
            bins = order_key(gain) >> _SHIFT
            np.add.at(self._counts, bins, 1)
            np.add.at(self._gains, bins, gain.astype(np.float64))
            np.add.at(self._weights, bins, weight)
            self.rows += len(gain)
            self.reached += int((gain >= floor).sum())
        self._gains[~np.isfinite(self._gains)] = 0

    def select(self, places: Sequence[int]) -> list[Selected]:
        """The first k rows for each k of `places`, in one more read.

        If more rows than `most_rows` have almost equal gains, they are counted by gain and shard, and the
        shard of each cut is read again.

        Args:
            places: each between 0 and `rows`.
        """
        before, gains, weights = (_before(sums) for sums in (self._counts, self._gains, self._weights))
        bins = np.searchsorted(before[1:], places)
        crossed = np.unique(bins[np.array(places, np.int64) > 0])
        by_size = crossed[np.argsort(self._counts[crossed], kind="stable")]
        fits = np.cumsum(self._counts[by_size]) <= self.most_rows
        rows, groups = _Rows(), _Groups(self.most_rows)
        of_bin: npt.NDArray[np.uint8] = np.zeros(_BINS, np.uint8)
        of_bin[by_size[fits]], of_bin[by_size[~fits]] = _KEEP, _GROUP
        for part in self.parts() if any(places) else ():
            key = order_key(part.gain)
            what = of_bin[key >> _SHIFT]
            at = np.flatnonzero(what)
            at = at[~np.isnan(part.gain[at])]
            for collected, those in ((rows, at[what[at] == _KEEP]), (groups, at[what[at] == _GROUP])):
                if len(those):
                    collected.add(key[those], part.rank[those], part.row[those], _weights(part)[those])
        found = []
        for k, at in zip(places, bins.tolist(), strict=True):
            if not k:
                found.append(Selected(None, 0, 0.0, 0))
                continue
            left = k - int(before[at])
            kept = of_bin[at] == _KEEP
            inside = rows.first(at, left) if kept else groups.first(at, left, self.parts)
            found.append(
                Selected(
                    inside.cut,
                    k,
                    float(gains[at]) + inside.gain,
                    int(weights[at]) + inside.weight,
                )
            )
        return found


class _Rows:
    """All rows of some bins."""

    def __init__(self) -> None:
        self._tables: list[tuple[Keys, Counts, Counts, Counts]] = []
        self._sorted: tuple[Keys, Counts, Counts, Counts] | None = None

    def add(self, key: Keys, rank: Counts, row: Counts, weight: Counts) -> None:
        self._tables.append((key, rank, row, weight))

    def first(self, at: int, k: int) -> Selected:
        """The first k rows of a bin."""
        if self._sorted is None:
            key, rank, row, weight = (np.concatenate(column) for column in zip(*self._tables, strict=True))
            order = np.lexsort((row, rank, key))
            self._sorted = (key[order], rank[order], row[order], weight[order])
        key, rank, row, weight = self._sorted
        low = int(np.searchsorted(key, np.uint32(at << int(_SHIFT))))
        last = low + k - 1
        cut = Cut(int(key[last]), int(rank[last]), int(row[last]))
        return Selected(cut, k, _summed(key[low : last + 1]), int(weight[low : last + 1].sum()))


class _Groups:
    """How many rows of some bins have each gain in each shard: for bins with too many rows to keep. A bin has
    1,024 possible gains."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tables: list[tuple[npt.NDArray[np.uint64], Counts, Counts]] = []
        self._size = 0

    def add(self, key: Keys, rank: Counts, row: Counts, weight: Counts) -> None:
        group = (key.astype(np.uint64) << np.uint64(32)) | rank.astype(np.uint64)
        self._tables.append(_grouped(group, np.ones(len(row), np.int64), weight))
        self._size += len(self._tables[-1][0])
        if self._size > self._most:
            self._merge()

    def _merge(self) -> None:
        self._tables = [_grouped(*(np.concatenate(column) for column in zip(*self._tables, strict=True)))]
        self._size = len(self._tables[0][0])

    def first(self, at: int, k: int, parts: Parts) -> Selected:
        """The first k rows of a bin: groups as wholes, and rows of the last group, which are read."""
        self._merge()
        group, count, weight = self._tables[0]
        low = int(np.searchsorted(group, np.uint64(at << int(_SHIFT) + 32)))
        ends = np.cumsum(count[low:])
        last = low + int(np.searchsorted(ends, k))
        key, rank = int(group[last] >> np.uint64(32)), int(group[last] & np.uint64(0xFFFFFFFF))
        left = k - (int(ends[last - low]) - int(count[last]))
        rows, weights = [], []
        for part in parts(ranks=[rank]):
            tied = (order_key(part.gain) == key) & (part.rank == rank) & ~np.isnan(part.gain)
            rows.append(part.row[tied])
            weights.append(_weights(part)[tied])
        row = np.concatenate(rows)
        order = np.argsort(row)[:left]
        before = slice(low, last)
        keys = (group[before] >> np.uint64(32)).astype(np.uint32)
        gain = math.fsum([_summed(keys, count[before]), _summed(np.array([key], np.uint32), left)])
        taken = int(weight[before].sum()) + int(np.concatenate(weights)[order].sum())
        return Selected(Cut(key, rank, int(row[order[-1]])), k, gain, taken)


def _before(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each bin, the sum of the bins before it; then the sum of all."""
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])


def _weights(part: Gains) -> Counts:
    return np.zeros(len(part.row), np.int64) if part.weight is None else part.weight


def _grouped(
    group: npt.NDArray[np.uint64], count: Counts, weight: Counts
) -> tuple[npt.NDArray[np.uint64], Counts, Counts]:
    """Counts and weights summed by group, in the groups' order."""
    order = np.argsort(group, kind="stable")
    group = group[order]
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    return group[starts], np.add.reduceat(count[order], starts), np.add.reduceat(weight[order], starts)


def _summed(keys: Keys, counts: Counts | int = 1) -> float:
    """Sum of the finite gains with these keys."""
    gains = _from_key(keys).astype(np.float64)
    return float(np.where(np.isfinite(gains), gains, 0.0) @ np.broadcast_to(counts, gains.shape))


def places(fraction: Decimal, rows_with_gain: int) -> int:
    """floor(p N), in exact decimal arithmetic: 0.29 of 100 is 29."""
    return math.floor(Fraction(fraction) * rows_with_gain)
