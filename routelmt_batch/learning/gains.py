"""The gain of a labelled row, for every command: quality of the large model minus that of the small one.

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
TOLERANCE: Final = 1e-3  # of the x100 scale: what rounding may do
_GAIN_PLACES: Final = 9


def gain_of(large: Floats, small: Floats) -> Floats:
    """large - small, (rows,) each, of the x100 scale; NaN where one is.

    Rounded, as 53.1 - 50.1 and 63.1 - 60.1 are two numbers to a float and one gain to everybody else.
    """
    with np.errstate(invalid="ignore"):  # of two infinite ones
        return np.round(large - small, _GAIN_PLACES)


def gain_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that a table's gains come from: both qualities; where it lacks one, `gain`."""
    qualities = (QUALITY_LARGE, QUALITY_SMALL)
    return qualities if set(qualities) <= set(names) else (GAIN,)


def given_gain(schema: pa.Schema) -> tuple[str, ...]:
    """The table's own `gain` column, if it has one to compare with."""
    return (GAIN,) if GAIN in schema.names and is_number(schema.field(GAIN).type) else ()


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold qualities or scores."""
    # A column of nulls alone is written as type null by pandas; it holds numbers, though not one.
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)
    )


@dataclass
class OtherGains:
    """Rows whose `gain` column is not the gain of their qualities, counted as they are read."""

    rows: int = 0
    most: float = 0.0

    def add(self, given: Floats, gain: Floats) -> None:
        """Compare some rows, without those whose gain cannot be used; NaN given, a gain that is not
        there, is not another gain."""
        usable = np.isfinite(gain)
        apart = np.abs(given[usable] - gain[usable])
        apart = apart[apart > TOLERANCE]
        self.rows += len(apart)
        self.most = max(self.most, float(apart.max(initial=0)))

    def warnings(self) -> list[str]:
        if not self.rows:
            return []
        return [
            f"the column {GAIN!r} is not {QUALITY_LARGE} - {QUALITY_SMALL} in {self.rows:,} rows (by "
            f"{self.most:,.3f} at most); it is not used"
        ]
