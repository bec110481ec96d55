"""Computes gains for every command: the large translation's quality minus the small one's.

It knows columns of numbers, and files by name only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from routelmt_batch.errors import InputError
from routelmt_batch.files.location import Location
from routelmt_batch.stats.measures import Floats, Integers

QUALITY_SMALL, QUALITY_LARGE, GAIN = "quality_small", "quality_large", "gain"
GAIN_BY_REFERENCE = "gain_by_reference"
TOLERANCE: Final = 1e-3  # on the x100 scale, for rounding
_GAIN_PLACES: Final = 9


def gain_of(large: Floats, small: Floats) -> Floats:
    """large - small, (rows,) each, on the x100 scale; NaN where either is NaN.

    It is rounded, because as floats 53.1 - 50.1 and 63.1 - 60.1 differ in their last digits.
    """
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.round(large - small, _GAIN_PLACES)


def gain_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that gains are computed from: both qualities, or `gain` if the table lacks one of them."""
    qualities = (QUALITY_LARGE, QUALITY_SMALL)
    return qualities if set(qualities) <= set(names) else (GAIN,)


def given_gain(schema: pa.Schema) -> tuple[str, ...]:
    """The table's own `gain` column, if it has one, to compare with the computed gain."""
    return (GAIN,) if GAIN in schema.names and is_number(schema.field(GAIN).type) else ()


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold qualities or scores."""
    # pandas writes a column that holds only nulls as type null. It counts as numeric.
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)
    )


def check_gains(file: Location, schema: pa.Schema) -> None:
    """Raises InputError if a table has a column `gain_by_reference` that holds no lists of numbers."""
    if GAIN_BY_REFERENCE not in schema.names:
        return
    kind = schema.field(GAIN_BY_REFERENCE).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (pa.types.is_null(kind) or (is_list and is_number(kind.value_type))):
        raise InputError(
            f"{file}: column {GAIN_BY_REFERENCE!r} is {kind}, not a list of numbers: write it as `label` "
            "does, or leave it out"
        )


@dataclass(frozen=True)
class Halves:
    """Two gains for each source that has several references, (sources,) each: the mean gain by its first,
    third, ... reference, and by its second, fourth, .... `of` are the sources' indexes, ascending."""

    of: Integers
    first: Floats
    second: Floats

    @property
    def gain(self) -> Floats:
        """The mean of both."""
        return (self.first + self.second) / 2


def halves(gain: Floats, of: Integers) -> Halves:
    """Split the gains of each source in two.

    Args:
        gain: (gains,); each is by another reference.
        of: (gains,), the index of the source that each belongs to.
    """
    in_order = np.argsort(of, kind="stable")
    sources, start, count = np.unique(of[in_order], return_index=True, return_counts=True)
    source = np.repeat(np.arange(len(sources)), count)
    is_second = (np.arange(len(of)) - np.repeat(start, count)) % 2 == 1
    several = count > 1
    means = []
    for mask in (~is_second, is_second):
        sums = np.bincount(source[mask], gain[in_order][mask], len(sources))
        means.append(sums[several] / np.bincount(source[mask], minlength=len(sources))[several])
    return Halves(sources[several], *means)


@dataclass
class OtherGains:
    """Counts rows whose gain in a column differs from the gain of their qualities."""

    column: str = f"the column {GAIN!r}"
    rows: int = 0
    most: float = 0.0

    def add(self, given: Floats, gain: Floats) -> None:
        """Compare some rows. A row without a usable gain, or whose `given` gain is missing (NaN), does not
        count."""
        usable = np.isfinite(gain)
        apart = np.abs(given[usable] - gain[usable])
        apart = apart[apart > TOLERANCE]
        self.rows += len(apart)
        self.most = max(self.most, float(apart.max(initial=0)))

    def warnings(self) -> list[str]:
        if not self.rows:
            return []
        return [
            f"{self.column} is not {QUALITY_LARGE} - {QUALITY_SMALL} in {self.rows:,} rows (by at most "
            f"{self.most:,.3f}); the column is not used"
        ]
