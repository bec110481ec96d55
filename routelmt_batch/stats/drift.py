"""Drift of one job's scores from another population's: population stability index, Kolmogorov-Smirnov."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from routelmt_batch.stats.measures import Floats, Integers
from routelmt_batch.stats.selection import Gains

# Population stability index: below 0.1 the populations are alike, from 0.25 on they differ (Siddiqi 2006).
PSI_WATCH, PSI_SHIFTED = 0.1, 0.25


@dataclass(frozen=True)
class Drift:
    """How far a job's scores differ from others: those the router was calibrated on, or another job's."""

    rows: int
    psi: float
    ks: float
    psi_by_chance: float  # 95% of jobs without drift have a lower psi


def at_most(parts: Iterable[Gains], quantiles: Floats) -> tuple[Integers, int]:
    """Count the scores of a stream that are at most each of `quantiles` (ascending), and all its scores."""
    below, rows = np.zeros(len(quantiles), np.int64), 0
    for part in parts:
        scores = np.sort(part.gain[~np.isnan(part.gain)])
        below += np.searchsorted(scores, quantiles, side="right")
        rows += len(scores)
    return below, rows


def from_quantiles(below: Integers, rows: int, quantiles: Floats, held_out_rows: int) -> Drift:
    """Population stability index over tenths, and Kolmogorov-Smirnov distance.

    Args:
        below: (101,) how many of the job's scores are at most each quantile.
        rows: how many scores the job has.
        quantiles: (101,) of the held-out scores, 0 to 100%.
        held_out_rows: how many held-out scores there are.
    """
    # Percent of the held-out scores that are at most each quantile: of equal quantiles, the last counts.
    held_out = np.searchsorted(quantiles, quantiles, side="right") - 1
    return apart(below / rows, held_out / 100, rows, held_out_rows)


def apart(share: Floats, others: Floats, rows: int, other_rows: int) -> Drift:
    """Drift of `rows` scores from `other_rows` others. `share` and `others`, (101,) each, are the shares of
    both that are at most each quantile (0 to 100%) of the others."""
    from scipy.stats import chi2

    ks = float(np.abs(share - others).max())
    edges, at = np.unique(others[10:100:10], return_index=True)  # of the tenths; equal edges are merged
    expected = np.diff(edges, prepend=0.0, append=1.0)
    actual = np.diff(share[10:100:10][at], prepend=0.0, append=1.0)
    # Half a row is added to each bin, so that an empty bin has a logarithm.
    actual = (actual * rows + 0.5) / (rows + 0.5 * len(actual))
    filled = expected > 0
    psi = float(((actual - expected) * np.log(actual / np.where(filled, expected, 1)))[filled].sum())
    # Without drift PSI is chi-squared, scaled by both sizes (Yurdakul and Naranjo 2020).
    by_chance = float(chi2.ppf(0.95, max(1, len(actual) - 1))) * (1 / rows + 1 / other_rows)
    return Drift(rows, psi, ks, by_chance)
