"""How well a router's order spends a budget: definitions of RouteLMT (arXiv 2604.22520).

It knows arrays only: gains, scores, and how often each row counts. Whole weights of 1 give the value
on the rows themselves; those of a resample give the value on rows repeated that often, without
repeating or sorting any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from routelmt_batch.selection import places

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

METRICS = ("spearman", "hit_rate", "mean_delta", "oracle_share", "severe_loss_rate")


@dataclass(frozen=True)
class Ties:
    """Rows of an ordered array that have equals, and the first and last of these: (tied rows,) each."""

    rows: Integers
    first: Integers
    last: Integers


@dataclass(frozen=True)
class Population:
    """Rows that share one budget, laid out in the gain oracle's order (highest gain first).

    `rows` are their indexes among all rows, `gain` their gains, both (N,) in that order; `place[i]`
    is where the i-th row, in row order, stands in it.
    """

    rows: Integers
    gain: Floats
    place: Integers
    ties: Ties


@dataclass(frozen=True)
class Ranking:
    """A router's order over a population: `place` (N,), where its rows stand in the oracle's order.

    The first `scored` rows have a score, and `ties` are among them. `gain` (N,) are the gains in the
    router's order.
    """

    place: Integers
    gain: Floats
    scored: int
    ties: Ties


@dataclass(frozen=True)
class Ranks:
    """Average ranks of a counted order, as twice the rank less its mean: `values` (N,).

    `spread` is their sum of squares over all counted rows, 0 if all are equal.
    """

    values: Floats
    spread: float


@dataclass(frozen=True)
class Routed:
    """What a budget of k takes of a ranking: the first rows, and how many times each."""

    taken: Integers
    gain: Floats
    place: Integers


def order(scores: Floats) -> Integers:
    """Row indexes, higher score first; -0 is +0, ties go by row order, rows with NaN come last."""
    return np.argsort(-scores, kind="stable")


def population(gain: Floats, rows: Integers) -> Population:
    """The rows given (ascending indexes into `gain`) as one population."""
    best_first = order(gain[rows])
    place = np.empty(len(rows), np.intp)
    place[best_first] = np.arange(len(rows))
    ordered = gain[rows][best_first]
    return Population(rows[best_first], ordered, place, _ties(ordered))


def ranking(population: Population, scores: Floats) -> Ranking:
    """A router's order; `scores` (N,) are of the population's rows in row order."""
    best_first = order(scores)
    scored = len(scores) - int(np.isnan(scores).sum())
    place = population.place[best_first]
    return Ranking(place, population.gain[place], scored, _ties(scores[best_first][:scored]))


def _ties(ordered: Floats) -> Ties:
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, int)
    size = np.diff(ends, prepend=-1)
    runs = size > 1
    last, size = np.repeat(ends[runs], size[runs]), np.repeat(size[runs], size[runs])
    first = last - size + 1
    within = np.arange(len(first)) - np.searchsorted(first, first)
    return Ties(first + within, first, last)


def measure(
    population: Population,
    rankings: Sequence[Ranking],
    weights: Integers,
    fraction: Decimal,
    severe: float,
) -> Floats:
    """The METRICS of each ranking, (routers, metrics), NaN where undefined.

    `weights` (all rows,) are whole numbers: how often each row counts. With W their sum over the
    population and k = floor(fraction W):

    - spearman: Pearson's correlation of the average ranks of score and gain, over rows with a score.
    - hit_rate: percent of the k rows of highest gain that are among the router's first k.
    - mean_delta: mean gain of the router's first k rows.
    - oracle_share: percent, mean_delta by the gain oracle's own; undefined unless that is above 0.
    - severe_loss_rate: percent of the router's first k rows with gain <= severe.
    """
    values = np.full((len(rankings), len(METRICS)), np.nan)
    weights = weights[population.rows]
    k = places(fraction, int(weights.sum()))
    ranks = _ranks(weights, population.ties)
    best = _routed(weights, population.gain, np.arange(len(weights)), k)
    in_best = np.zeros_like(weights)
    in_best[: len(best.taken)] = best.taken
    best_sum = _dot(best.taken, best.gain)
    for row, router in zip(values, rankings, strict=True):
        counts = weights[router.place]
        row[0] = _spearman(population, router, counts, ranks)
        if k:
            routed = _routed(counts, router.gain, router.place, k)
            bought = _dot(routed.taken, routed.gain)
            row[1] = 100 * np.minimum(routed.taken, in_best[routed.place]).sum() / k
            row[2] = bought / k
            row[3] = 100 * bought / best_sum if best_sum > 0 else np.nan
            row[4] = 100 * (routed.taken * (routed.gain <= severe)).sum() / k
    return values


def _routed(counts: Integers, gain: Floats, place: Integers, k: int) -> Routed:
    """The first k of rows counted so often, in the order given; the last may be taken in part."""
    running = np.cumsum(counts, dtype=np.int32)
    end = int(np.searchsorted(running, k)) + 1 if k else 0
    taken = counts[:end].copy()
    if end:
        taken[-1] -= running[end - 1] - k
    return Routed(taken, gain[:end], place[:end])


def _ranks(counts: Integers, ties: Ties) -> Ranks:
    """Ranks of an order whose rows count `counts` times.

    t equal rows that end at rank c have average rank c - (t - 1) / 2, and ranks have the mean
    (W + 1) / 2: the value is 2c - t - W, whole, and free of cancellation in sums.
    """
    running = np.cumsum(counts, dtype=np.int32)  # up to 2^31 rows, and four times as fast as int64
    total = float(running[-1]) if len(running) else 0.0
    values: Floats = np.multiply(running, 2.0, dtype=np.float64)
    values -= counts
    values -= total
    before = running[ties.first] - counts[ties.first]
    values[ties.rows] = running[ties.last] + before - total
    return Ranks(values, float(np.einsum("i,i,i", counts, values, values)))


def _spearman(population: Population, router: Ranking, counts: Integers, gain_ranks: Ranks) -> float:
    """Spearman's rank correlation with ties, over rows with a score; `counts` in the router's order."""
    counts, place = counts[: router.scored], router.place[: router.scored]
    if router.scored < len(router.place):  # gains are ranked anew, among the rows with a score
        scored = np.zeros(len(router.place), counts.dtype)
        scored[place] = counts
        gain_ranks = _ranks(scored, population.ties)
    score_ranks = _ranks(counts, router.ties)
    if not (score_ranks.spread and gain_ranks.spread):
        return np.nan
    # einsum, here and below, not BLAS: the same sum on any number of cores.
    shared = float(np.einsum("i,i,i", counts, gain_ranks.values[place], score_ranks.values))
    return float(np.clip(shared / np.sqrt(score_ranks.spread * gain_ranks.spread), -1, 1))


def _dot(counts: Integers, values: Floats) -> float:
    return float(np.einsum("i,i", counts, values))


def why_undefined(population: Population, router: Ranking, metric: str, k: int) -> str:
    """The rule that leaves a metric without a value, of rows that count once each."""
    if metric != "spearman":
        return "the budget is no row" if not k else "the gain oracle's mean_delta is not above 0"
    if router.scored < 2:
        return "fewer than two rows have a score"
    gains = router.gain[: router.scored]
    return "all gains are equal" if (gains == gains[0]).all() else "all scores are equal"


def edges(severe: float) -> list[float]:
    """Bounds of the gain buckets, each bucket closed on its right, as `gain <= severe` is."""
    return sorted({-20.0, severe, 0.0, 5.0, 20.0})


def bucket_counts(gain: Floats, severe: float) -> list[int]:
    """Rows per gain bucket, lowest first; one bucket more than there are edges."""
    bounds = edges(severe)
    found = np.searchsorted(bounds, gain, side="left")
    return [int(count) for count in np.bincount(found, minlength=len(bounds) + 1)]


def budget_curve(base: Floats, gain: Floats) -> Floats:
    """Mean quality of the corpus with the first k rows of an order routed, k = 0 .. N: (N + 1,).

    `base` (N,) is the small model's quality, `gain` (N,) the gains in the router's order.
    """
    return float(base.mean()) + np.append(0.0, np.cumsum(gain)) / len(gain)


def area(curve: Floats) -> float:
    """Area under a budget curve over p = k / N from 0 to 1, by trapezoids over every k."""
    from scipy.integrate import trapezoid

    return float(trapezoid(curve, dx=1 / (len(curve) - 1)))
