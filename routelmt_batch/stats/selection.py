"""Exact global top-k over gains that fit in no process: radix selection over committed parts.

The order is total: higher gain first (-0 counts as +0), then shard name as UTF-8 bytes, then row.
A cut is the last key that is selected, so a row's own key shows whether it is selected. It knows
gains, shards and rows, not what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]
_DIGIT_BITS = 16
_BEYOND = 1 << 62  # past every rank and row


@dataclass(frozen=True)
class Gains:
    """Some rows of the corpus: gain (float32, NaN where there is none), shard rank, row index.

    A shard's rank is its place among the job's shards ordered by name as UTF-8 bytes.
    """

    gain: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]


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
    bits = (gain.astype(np.float32) + np.float32(0)).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    ascending = np.where(negative, ~bits, bits | np.uint32(1 << 31))
    return np.asarray(~ascending, np.uint32)


def _from_key(key: Keys) -> npt.NDArray[np.float32]:
    ascending = ~key
    negative = ascending >> np.uint32(31) == 0
    bits = np.where(negative, ~ascending, ascending & np.uint32((1 << 31) - 1))
    return bits.astype(np.uint32).view(np.float32)


# The key's digits from most to least significant, and how many values each can take. The shard's rank
# is one digit, with a value for each shard. The row takes 3 x 16 bits: shards of up to 2^48 rows.
Digit = Callable[[Gains], npt.NDArray[np.int64]]


def _digits(shards: int) -> list[tuple[Digit, int]]:
    def bits(values: npt.NDArray[np.generic], shift: int) -> npt.NDArray[np.int64]:
        return (values.astype(np.int64) >> shift) & 0xFFFF

    size = 1 << _DIGIT_BITS
    return [
        (lambda g: bits(order_key(g.gain), 16), size),
        (lambda g: bits(order_key(g.gain), 0), size),
        (lambda g: g.rank, max(shards, 1)),
        (lambda g: bits(g.row, 32), size),
        (lambda g: bits(g.row, 16), size),
        (lambda g: bits(g.row, 0), size),
    ]


def cuts(parts: Callable[[], Iterable[Gains]], places: Sequence[int], shards: int) -> list[Cut | None]:
    """The cut that selects exactly k rows, for each k of `places`; None for 0.

    Reads the parts six times and keeps, for each distinct prefix, one histogram of 65,536 bins (or
    one bin a shard): memory does not grow with rows. Parts may come in any order.

    Args:
        parts: yields the same parts at each call.
        places: each between 0 and the number of rows with a gain.
        shards: the number of shards, so that ranks are below it.
    """
    prefixes: list[tuple[int, ...]] = [() for _ in places]
    left = list(places)
    for digit in range(len(_digits(shards))):
        wanted = {prefix for prefix, k in zip(prefixes, places, strict=True) if k}
        histograms = _histograms(parts(), digit, wanted, shards) if wanted else {}
        for index, k in enumerate(places):
            if not k:
                continue
            ends = np.cumsum(histograms[prefixes[index]])
            value = int(np.searchsorted(ends, left[index]))
            left[index] -= int(ends[value - 1]) if value else 0
            prefixes[index] += (value,)
    return [_cut(prefix) if k else None for prefix, k in zip(prefixes, places, strict=True)]


def _histograms(
    parts: Iterable[Gains], digit: int, wanted: set[tuple[int, ...]], shards: int
) -> dict[tuple[int, ...], npt.NDArray[np.int64]]:
    digits = _digits(shards)
    value_of, size = digits[digit]
    histograms = {prefix: np.zeros(size, np.int64) for prefix in wanted}
    for part in parts:
        has_gain = ~np.isnan(part.gain)
        values = value_of(part)
        earlier = [earlier_value(part) for earlier_value, _ in digits[:digit]]
        for prefix, histogram in histograms.items():
            mask = has_gain
            for column, wanted_value in zip(earlier, prefix, strict=True):
                mask = mask & (column == wanted_value)
            np.add.at(histogram, values[mask], 1)  # a part has far fewer rows than there are bins
    return histograms


def _cut(prefix: tuple[int, ...]) -> Cut:
    high, low, rank, *row = prefix
    return Cut((high << 16) | low, rank, (row[0] << 32) | (row[1] << 16) | row[2])


def places(fraction: Decimal, rows_with_gain: int) -> int:
    """floor(p N), in exact decimal arithmetic: 0.29 of 100 is 29."""
    return int((fraction * rows_with_gain).to_integral_value(ROUND_FLOOR))


def count(parts: Iterable[Gains], at_least: float | None = None) -> int:
    """Count the rows with a gain, or with a gain of at least `at_least`."""
    floor = -np.inf if at_least is None else at_least
    return sum(int((part.gain >= floor).sum()) for part in parts)
