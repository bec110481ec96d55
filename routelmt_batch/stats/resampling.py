"""The bootstrap: how far a measure would vary on other rows of the same kind.

Rows are resampled with replacement (Efron and Tibshirani 1993, chapters 13 and 16). All routers use the same
resamples, so that their differences are paired. It knows only arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from routelmt_batch.stats.measures import Floats, Integers

LEVEL_PERCENT = 95
MOST_RESAMPLES, FEWEST_RESAMPLES = 1000, 100
_ROW_VISITS = 1.5e8  # rows times resamples: a million rows are resampled 150 times
_THREADS = 2  # numpy releases the interpreter's lock; more than two threads wait for memory


@dataclass(frozen=True)
class Comparison:
    """A paired difference: its interval, and the two-sided p-value for a difference of 0."""

    low: float
    high: float
    p_value: float


def default_resamples(rows: int) -> int:
    """1000, or fewer for many rows, whose intervals are narrow: 150 for a million rows, at least 100."""
    return int(max(FEWEST_RESAMPLES, min(MOST_RESAMPLES, _ROW_VISITS / max(rows, 1))))


def resample(rows: int, generator: np.random.Generator) -> Integers:
    """How often each row is drawn in `rows` draws with replacement: multinomial counts, (rows,)."""
    # Counting draws is the multinomial's definition, and eight times as fast as numpy's sampler.
    counts = np.bincount(generator.integers(0, rows, rows), minlength=rows)
    return counts.astype(np.min_scalar_type(int(counts.max())))


def bootstrap(
    rows: int, measured: Callable[[Integers], Floats], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """The values of `measured` for each resample's counts, stacked along a new first axis.

    Every resample has its own random stream: neither threads nor their timing change a number.
    """
    streams = np.random.SeedSequence(seed).spawn(resamples)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        values = pool.map(
            lambda stream: measured(resample(rows, np.random.Generator(np.random.PCG64(stream)))), streams
        )
        return np.stack(list(values))


def interval(samples: Sequence[float] | Floats) -> tuple[float | None, float | None]:
    """The 95% percentile interval of the samples that are not NaN; (None, None) if there are none."""
    defined = np.asarray(samples)[~np.isnan(samples)]
    if not len(defined):
        return None, None
    tail = (100 - LEVEL_PERCENT) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def compare(differences: Floats) -> Comparison:
    """The interval of paired differences; the p-value is twice the smaller share of them on one side of 0.

    One is added to both counts (Davison and Hinkley 1997, section 4.2), so that p is never 0.
    """
    low, high = interval(differences)
    assert low is not None and high is not None, "mean_delta is defined in every resample or in none"
    least = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return Comparison(low, high, min(1.0, 2 * (least + 1) / (len(differences) + 1)))
