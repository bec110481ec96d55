"""Exact global top-k over gains that fit in no process, in two reads of committed parts.

The first read counts the gains in 2^22 bins of neighbouring values; the second collects the rows of the bins
in which the cuts lie. The order is total: higher value first (-0 counts as +0), then shard name as UTF-8
bytes, then row. A row's value is its gain, or its gain per cost. A cut is the last key that is selected, so
a row's own key shows whether it is selected. It knows gains, costs, shards and rows, not what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
# Rows that the second read keeps at a time, at 40 bytes each. It exceeds them only if many values are equal.
_MOST_ROWS = 1 << 22
_KEEP, _GROUP = 1, 2  # what the second read does with the rows of a bin


@dataclass(frozen=True)
class Gains:
    """Some rows of the corpus: gain (float32, NaN where there is none), shard rank and row index.

    A shard's rank is its place among the job's shards ordered by name as UTF-8 bytes.

    Args:
        weight: is summed over the selected rows (prompt tokens).
        cost: what each row costs, a whole number of at least 1; without it each row costs 1.
        direction: the number of each row's direction.
        per_cost: rows are ordered by gain per cost, not by gain.
    """

    gain: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    weight: npt.NDArray[np.int64] | None = None
    cost: npt.NDArray[np.int64] | None = None
    direction: npt.NDArray[np.int16] | None = None
    per_cost: bool = False

    @property
    def value(self) -> npt.NDArray[np.float32]:
        """What orders the rows: nothing else computes it. A quotient is rounded once to float64, then to
        float32."""
        if not self.per_cost:
            return self.gain
        assert self.cost is not None
        return (self.gain.astype(np.float64) / self.cost).astype(np.float32)

    def only(self, rows: npt.NDArray[np.bool_]) -> Gains:
        """The same rows, of which the others have no gain."""
        return replace(self, gain=np.where(rows, self.gain, np.float32(np.nan)))


@dataclass(frozen=True, order=True)
class Cut:
    """The last row that is selected. `key` is `order_key(value)`. Cuts are ordered as rows are."""

    key: int
    rank: int
    row: int

    @classmethod
    def at_least(cls, value: float) -> Cut:
        """The cut that selects every row with at least this value (as float32), in any shard."""
        (key,) = order_key(np.array([value], np.float32))
        return cls(int(key), _BEYOND, _BEYOND)

    @property
    def value(self) -> float:
        """The value of the last row that is selected: the threshold."""
        return float(_from_key(np.array([self.key], np.uint32))[0])

    def admits(self, gains: Gains) -> npt.NDArray[np.bool_]:
        """Which rows are selected; a row without a gain never is."""
        value = gains.value
        key = order_key(value)
        earlier = (gains.rank < self.rank) | ((gains.rank == self.rank) & (gains.row <= self.row))
        inside = (key < self.key) | ((key == self.key) & earlier)
        return np.asarray(inside & ~np.isnan(value))


def admitted(cut: Cut | None, part: Gains) -> npt.NDArray[np.bool_]:
    return cut.admits(part) if cut else np.zeros(len(part.row), bool)


@dataclass(frozen=True)
class Cuts:
    """A cut for each direction in `named`, and one for all other rows. None: no row is selected."""

    others: Cut | None = None
    named: Mapping[int, Cut | None] = field(default_factory=dict)

    def admits(self, gains: Gains) -> npt.NDArray[np.bool_]:
        inside = admitted(self.others, gains)
        for direction, cut in self.named.items():
            assert gains.direction is not None
            inside = np.where(gains.direction == direction, admitted(cut, gains), inside)
        return inside


def order_key(value: npt.NDArray[np.float32]) -> Keys:
    """uint32 keys that ascend as values descend; equal for -0 and +0."""
    # Adding 0 makes -0 a +0. Then all bits of a positive number but the sign are inverted.
    bits = (value.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)
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
    ones left out), weight and cost."""

    cut: Cut | None
    rows: int
    gain: float
    weight: int
    cost: int

    @property
    def threshold(self) -> float | None:
        """The value of the last row; None without rows."""
        return self.cut.value if self.cut else None


NOTHING = Selected(None, 0, 0.0, 0, 0)


class GainOrder:
    """All rows in order, without holding them: how many lie in each bin, and the sums over them.

    Rows, weights and costs are whole numbers: their sums are exact. In an order by gain, a bin holds gains of
    one sign and exponent, so its float64 sum is exact up to 2^29 rows. So no sum depends on the order of the
    parts, except for the last digits of the gain in an order by gain per cost.

    Args:
        parts: read once here, and once for each `select`.
        at_least: count the rows with at least this value (as float32).
        most_rows: the rows that `select` keeps at a time.
        in_rows: amounts are numbers of rows, also if rows have costs.

    Attributes:
        rows, cost: of the rows with a gain.
        reached: rows with a value of `at_least`; without it, all rows with a gain. `reached_cost` is theirs.
    """

    def __init__(
        self,
        parts: Parts,
        at_least: float | None = None,
        most_rows: int = _MOST_ROWS,
        in_rows: bool = False,
    ) -> None:
        self.parts, self.most_rows = parts, most_rows
        self.rows = self.cost = self.reached = self.reached_cost = 0
        self._counts, self._weights, self._costs = (np.zeros(_BINS, np.int64) for _ in range(3))
        self._gains: npt.NDArray[np.float64] = np.zeros(_BINS)
        floor, costed = np.float32(-np.inf if at_least is None else at_least), False
        for part in parts(keys=False):
            value, gain, weight, cost = part.value, part.gain, _weights(part), part.cost
            if (missing := np.isnan(value)).any():
                value, gain, weight = value[~missing], gain[~missing], weight[~missing]
                cost = None if cost is None else cost[~missing]
            bins, reached = order_key(value) >> _SHIFT, value >= floor
            np.add.at(self._counts, bins, 1)
            np.add.at(self._gains, bins, gain.astype(np.float64))
            np.add.at(self._weights, bins, weight)
            self.rows += len(value)
            self.reached += int(reached.sum())
            if cost is not None:
                costed = True
                np.add.at(self._costs, bins, cost)
                self.cost += int(cost.sum())
                self.reached_cost += int(cost[reached].sum())
        if not costed:  # each row costs 1
            self._costs, self.cost, self.reached_cost = self._counts, self.rows, self.reached
        self._in_rows = in_rows or not costed
        self._gains[~np.isfinite(self._gains)] = 0

    def select(self, amounts: Sequence[int]) -> list[Selected]:
        """For each amount, the longest prefix of the order whose summed cost is at most the amount: it is
        never over it, and the next row would be. Without costs these are the first k rows. In one more read.

        If more rows than `most_rows` have almost equal values, they are counted by value and shard, and the
        shard of each cut is read again.
        """
        counts, gains, weights = (_before(sums) for sums in (self._counts, self._gains, self._weights))
        costs = counts if self._costs is self._counts else _before(self._costs)
        spent = counts if self._in_rows else costs
        amounts = [min(amount, int(spent[-1])) for amount in amounts]
        bins = np.searchsorted(spent[1:], amounts)
        # If the bin's first row costs too much, the cut is the last row of the bin before it that has rows.
        earlier = np.searchsorted(spent[1:], spent[bins])
        crossed = np.unique(bins[np.array(amounts, np.int64) > 0])
        if not self._in_rows:
            crossed = np.union1d(crossed, earlier[spent[bins] > 0])
        collected = self._collect(crossed)
        found = []
        for amount, at, before in zip(amounts, bins.tolist(), earlier.tolist(), strict=True):
            inside = NOTHING
            if amount:
                inside = collected[at].first(at, amount - int(spent[at]))
            if inside.cut is None and spent[at]:
                at = before
                inside = collected[at].first(at, int(spent[at + 1] - spent[at]))
            sums = int(counts[at]), float(gains[at]), int(weights[at]), int(costs[at])
            found.append(_joined(Selected(None, *sums), inside) if inside.cut else NOTHING)
        return found

    def _collect(self, crossed: npt.NDArray[np.int64]) -> dict[int, _Rows | _Groups]:
        """What the second read finds in some bins, by bin."""
        by_size = crossed[np.argsort(self._counts[crossed], kind="stable")]
        fits = np.cumsum(self._counts[by_size]) <= self.most_rows
        rows, groups = _Rows(self._in_rows), _Groups(self.most_rows, self._in_rows, self.parts)
        of_bin: npt.NDArray[np.uint8] = np.zeros(_BINS, np.uint8)
        of_bin[by_size[fits]], of_bin[by_size[~fits]] = _KEEP, _GROUP
        for part in self.parts() if len(crossed) else ():
            value = part.value
            key = order_key(value)
            what = of_bin[key >> _SHIFT]
            at = np.flatnonzero(what)
            at = at[~np.isnan(value[at])]
            for collected, those in ((rows, at[what[at] == _KEEP]), (groups, at[what[at] == _GROUP])):
                if len(those):
                    collected.add(key[those], part, those)
        return {at: rows if of_bin[at] == _KEEP else groups for at in crossed.tolist()}


class _Rows:
    """All rows of some bins."""

    def __init__(self, in_rows: bool) -> None:
        self._in_rows = in_rows
        self._tables: list[tuple[npt.NDArray[Any], ...]] = []
        self._ends: Counts | None = None

    def add(self, key: Keys, part: Gains, at: Counts) -> None:
        sums = (_costs(part)[at], _weights(part)[at], part.gain[at])
        self._tables.append((key, part.rank[at], part.row[at], *sums))

    def _order(self) -> Counts:
        """Join the tables into one, in order. Returns the summed cost up to each row."""
        if self._ends is None:
            columns = [np.concatenate(column) for column in zip(*self._tables, strict=True)]
            key, rank, row, cost, *_ = columns
            order = np.lexsort((row, rank, key))
            self._tables = [tuple(column[order] for column in columns)]
            self._ends = np.arange(1, len(key) + 1) if self._in_rows else np.cumsum(cost[order])
        return self._ends

    def first(self, at: int, amount: int) -> Selected:
        """The longest prefix of a bin that costs at most an amount, which the whole bin costs at least."""
        ends = self._order()
        ((key, rank, row, cost, weight, gain),) = self._tables
        low = int(np.searchsorted(key, np.uint32(at << int(_SHIFT))))
        before = int(ends[low - 1]) if low else 0
        end = int(np.searchsorted(ends, before + amount, side="right"))
        if end == low:
            return NOTHING
        inside, last = slice(low, end), end - 1
        cut = Cut(int(key[last]), int(rank[last]), int(row[last]))
        sums = float(_finite(gain[inside]).sum()), int(weight[inside].sum()), int(cost[inside].sum())
        return Selected(cut, end - low, *sums)


class _Groups:
    """How many rows of some bins have each value in each shard, and their sums: for bins with too many rows
    to keep. A bin has 1,024 possible values."""

    def __init__(self, most: int, in_rows: bool, parts: Parts) -> None:
        self._most, self._in_rows, self._parts = most, in_rows, parts
        self._tables: list[tuple[npt.NDArray[Any], ...]] = []
        self._size = 0

    def add(self, key: Keys, part: Gains, at: Counts) -> None:
        group = (key.astype(np.uint64) << np.uint64(32)) | part.rank[at].astype(np.uint64)
        sums = np.ones(len(at), np.int64), _costs(part)[at], _weights(part)[at], _finite(part.gain[at])
        self._tables.append(_grouped(group, *sums))
        self._size += len(self._tables[-1][0])
        if self._size > self._most:
            self._merge()
            # Merge again when as many have come: if most groups differ, else each part would merge all.
            self._most = max(self._most, 2 * self._size)

    def _merge(self) -> None:
        if len(self._tables) > 1:
            self._tables = [_grouped(*(np.concatenate(column) for column in zip(*self._tables, strict=True)))]
        self._size = len(self._tables[0][0])

    def first(self, at: int, amount: int) -> Selected:
        """As _Rows.first: groups as wholes, and rows of the next group, which are read."""
        self._merge()
        ((group, count, cost, weight, gain),) = self._tables
        ends = np.cumsum(count if self._in_rows else cost)
        low = int(np.searchsorted(group, np.uint64(at << int(_SHIFT) + 32)))
        before = int(ends[low - 1]) if low else 0
        end = int(np.searchsorted(ends, before + amount, side="right"))
        wholes = slice(low, end)
        rows, spent, summed = (int(column[wholes].sum()) for column in (count, cost, weight))
        cut = Cut(*_parted(group[end - 1]), _BEYOND) if end > low else None
        found = Selected(cut, rows, float(gain[wholes].sum()), summed, spent)
        left = before + amount - (int(ends[end - 1]) if end else 0)
        return _joined(found, self._first_of(*_parted(group[end]), left)) if left else found

    def _first_of(self, key: int, rank: int, amount: int) -> Selected:
        """The longest prefix of one group, as _Rows.first."""
        rows = _Rows(self._in_rows)
        for part in self._parts(ranks=[rank]):
            value = part.value
            tied = np.flatnonzero((order_key(value) == key) & (part.rank == rank) & ~np.isnan(value))
            rows.add(np.full(len(tied), key, np.uint32), part, tied)
        return rows.first(key >> int(_SHIFT), amount)


def _before(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each bin, the sum of the bins before it; then the sum of all."""
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])


def _weights(part: Gains) -> Counts:
    return np.zeros(len(part.gain), np.int64) if part.weight is None else part.weight


def _costs(part: Gains) -> Counts:
    return np.ones(len(part.gain), np.int64) if part.cost is None else part.cost


def _grouped(group: npt.NDArray[np.uint64], *columns: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Columns summed by group, in the groups' order."""
    order = np.argsort(group, kind="stable")
    group = group[order]
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    return group[starts], *(np.add.reduceat(column[order], starts) for column in columns)


def _parted(group: np.uint64) -> tuple[int, int]:
    """A group's key and rank."""
    return int(group) >> 32, int(group) & 0xFFFFFFFF


def _finite(gain: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The gains, with 0 for infinite ones."""
    return np.where(np.isfinite(gain), gain, np.float32(0)).astype(np.float64)


def _joined(first: Selected, then: Selected) -> Selected:
    """Two selections, one after the other in the order."""
    return Selected(
        then.cut or first.cut,
        first.rows + then.rows,
        first.gain + then.gain,
        first.weight + then.weight,
        first.cost + then.cost,
    )


def places(fraction: Decimal, rows_with_gain: int) -> int:
    """floor(p N), in exact decimal arithmetic: 0.29 of 100 is 29."""
    return math.floor(Fraction(fraction) * rows_with_gain)
