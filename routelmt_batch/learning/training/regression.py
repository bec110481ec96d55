"""Measures how well predicted values fit realised ones. It knows only two columns of numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from routelmt_batch.files.record import Record

Floats = npt.NDArray[np.floating[Any]]
BINS = 10


class Measures(Record):
    """None where a measure is not defined: a correlation with a constant, R² of constant values."""

    rows: int
    r2: float | None
    mae: float | None
    pearson: float | None
    spearman: float | None
    expected_calibration_error: float | None

    @property
    def values(self) -> tuple[float | None, ...]:
        """The measures alone, in this order."""
        return self.r2, self.mae, self.pearson, self.spearman, self.expected_calibration_error


def measure(predicted: Floats, realised: Floats) -> Measures:
    """All measures of float arrays of equal length; MAE and calibration error in the unit of the values."""
    predicted, realised = np.asarray(predicted, np.float64), np.asarray(realised, np.float64)
    if not len(realised):
        return Measures.of({**dict.fromkeys(Measures.model_fields), "rows": 0})
    return Measures.of(
        {
            "rows": len(realised),
            "r2": _r2(predicted, realised),
            "mae": float(np.abs(predicted - realised).mean()),
            "pearson": _correlation("pearsonr", predicted, realised),
            "spearman": spearman(predicted, realised),
            "expected_calibration_error": calibration_error(predicted, realised),
        }
    )


def spearman(predicted: Floats, realised: Floats) -> float:
    """Rank correlation, ties by mean rank; NaN if either side is constant."""
    return _correlation("spearmanr", predicted, realised)


def calibration_error(predicted: Floats, realised: Floats, bins: int = BINS) -> float:
    """Expected calibration error of a regression: rows in `bins` bins of equal count by predicted
    value (ties by row order), |mean predicted - mean realised| of each, weighted by its rows."""
    order = np.argsort(predicted, kind="stable")
    gaps = [
        len(rows) * abs(float(predicted[rows].mean()) - float(realised[rows].mean()))
        for rows in np.array_split(order, min(bins, len(order)))
    ]
    return sum(gaps) / len(order)


def _r2(predicted: Floats, realised: Floats) -> float:
    """Share of the variance explained, compared with the mean of these rows; below 0 if worse than it."""
    total = float(((realised - realised.mean()) ** 2).sum())
    return 1 - float(((realised - predicted) ** 2).sum()) / total if total else math.nan


def _correlation(name: str, left: Floats, right: Floats) -> float:
    from scipy import stats

    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(getattr(stats, name)(left, right).statistic)
