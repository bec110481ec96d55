"""Computes gains for every command: the large translation's quality minus the small one's.

It knows columns of numbers, not files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from routelmt_batch.stats.measures import Floats

QUALITY_SMALL, QUALITY_LARGE, GAIN = "quality_small", "quality_large", "gain"
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


@dataclass
class OtherGains:
    """Counts rows whose `gain` column differs from the gain of their qualities."""

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
            f"the column {GAIN!r} is not {QUALITY_LARGE} - {QUALITY_SMALL} in {self.rows:,} rows (by at most "
            f"{self.most:,.3f}); the column is not used"
        ]
