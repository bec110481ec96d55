"""How well a router's order spends a budget: definitions of RouteLMT (arXiv 2604.22520).

It knows only arrays: gains, scores and weights. A row's weight is how often it counts: weights of 1 give
the value on the rows themselves; a resample's weights give the value on rows repeated that often, without
repeating or sorting any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from routelmt_batch.stats.selection import places

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

METRICS = ("spearman", "hit_rate", "mean_delta", "oracle_share", "severe_loss_rate")
FEW_ROWS = 30  # figures of fewer rows are uncertain
_SAME = 1e-6  # points: finer than any measured quality, and coarser than rounding errors


def is_constant(gain: Floats) -> bool:
    """Whether gains (N,) differ by no more than rounding: then nothing ranks them."""
    return not len(gain) or bool(np.ptp(gain) <= _SAME)


@dataclass(frozen=True)
class Ties:
    """The tied rows of an ordered array, and the first and the last row that ties with each: (tied rows,)
    each."""

    rows: Integers
    first: Integers
    last: Integers


@dataclass(frozen=True)
class Population:
    """Rows that share one budget, laid out in the gain oracle's order (highest gain first).

    `rows` are their indexes among all rows, `gain` their gains, both (N,) in that order; `oracle_rank[i]`
    is the position in it of the i-th row in row order.
    """

    rows: Integers
    gain: Floats
    oracle_rank: Integers
    ties: Ties

    @property
    def gain_by_row(self) -> Floats:
        """The gains in row order."""
        return self.gain[self.oracle_rank]


@dataclass(frozen=True)
class Guard:
    """The quality of the small translations that is known before the large model is called: `quality` (N,),
    NaN where it is unknown, which does not count as good.

    The router's first `candidates` x k rows contend for the k places of a budget. With `keep_small_above`, as
    in a job's guard, rows of at most that quality get them, in the router's order; without it, the k rows of
    lowest quality (or all candidates, if they are fewer).
    """

    quality: Floats
    candidates: float
    keep_small_above: float | None = None


@dataclass(frozen=True)
class Contenders:
    """A guard's choice: the rows that may get a place, as indexes into the router's order, in the order in
    which they get one. Only a router's first `candidates` x k rows contend."""

    order: Integers
    candidates: float


@dataclass(frozen=True)
class Ranking:
    """A router's order over a population; `oracle_rank` (N,) is its rows' position in the oracle's order.

    The first `scored` rows have a score, and `ties` are among them. `gain` (N,) is what each row brings if
    it is routed, in the router's order.
    """

    oracle_rank: Integers
    gain: Floats
    scored: int
    ties: Ties
    contenders: Contenders | None = None

    @property
    def rows(self) -> int:
        return len(self.oracle_rank)

    @property
    def ranks(self) -> bool:
        """Whether the scores differ, or there is only one."""
        return len(self.ties.rows) < self.scored or bool(self.ties.first.any())


@dataclass(frozen=True)
class Ranks:
    """Average ranks of weighted rows, as twice each rank's difference from the mean rank: `values` (N,).

    `spread` is the weighted sum of their squares, 0 if all are equal.
    """

    values: Floats
    spread: float


@dataclass(frozen=True)
class Routed:
    """The rows of a ranking that get the places of a budget, and how often each is taken."""

    taken: Integers
    gain: Floats
    oracle_rank: Integers


def order(scores: Floats) -> Integers:
    """Row indexes, higher score first; -0 equals +0, ties keep the row order, and rows with NaN come last."""
    return np.argsort(-scores, kind="stable")


def population(gain: Floats, rows: Integers) -> Population:
    """The rows given (ascending indexes into `gain`) as one population."""
    best_first = order(gain[rows])
    oracle_rank = np.empty(len(rows), np.intp)
    oracle_rank[best_first] = np.arange(len(rows))
    ordered = gain[rows][best_first]
    ties = _ties(np.zeros_like(ordered) if is_constant(ordered) else ordered)
    return Population(rows[best_first], ordered, oracle_rank, ties)


def ranking(
    population: Population, scores: Floats, guard: Guard | None = None, brings: Floats | None = None
) -> Ranking:
    """A router's order; all arrays (N,) are of the population's rows in row order.

    Args:
        scores: highest first; NaN where the router has none.
        guard: chooses among the router's first rows.
        brings: what a routed row brings, if not its gain: 0 where the small translation is kept after all.
    """
    best_first = order(scores)
    scored = len(scores) - int(np.isnan(scores).sum())
    oracle_rank = population.oracle_rank[best_first]
    gain = population.gain[oracle_rank] if brings is None else brings[best_first]
    contenders = _contenders(guard, best_first[:scored]) if guard else None
    return Ranking(oracle_rank, gain, scored, _ties(scores[best_first][:scored]), contenders)


def _contenders(guard: Guard, best_first: Integers) -> Contenders:
    quality = guard.quality[best_first]
    if guard.keep_small_above is not None:
        return Contenders(np.flatnonzero(~(quality > guard.keep_small_above)), guard.candidates)
    lowest_first = np.lexsort((quality, ~np.isnan(quality)))  # stable; unknown qualities come first
    return Contenders(lowest_first, guard.candidates)


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

    - spearman: Pearson's correlation of the average ranks of score and gain, over rows with a score; a
      guard changes no score.
    - hit_rate: percent of the k rows of highest gain that are routed: the router's first k, or those
      that its guard lets through.
    - mean_delta: what the routed rows bring, divided by k: a place that a guard leaves empty brings 0.
    - oracle_share: mean_delta in percent of the gain oracle's; undefined unless that is above 0.
    - severe_loss_rate: routed rows that bring <= severe, in percent of k.
    """
    values = np.full((len(rankings), len(METRICS)), np.nan)
    weights = weights[population.rows]
    k = places(fraction, int(weights.sum()))
    ranks = _ranks(weights, population.ties)
    best = _first(weights, k)
    in_best = np.zeros_like(weights)
    in_best[: len(best)] = best
    best_sum = _dot(best, population.gain[: len(best)])
    for row, router in zip(values, rankings, strict=True):
        counts = weights[router.oracle_rank]
        row[0] = _spearman(population, router, counts, ranks)
        if k:
            routed = _routed(counts, router, k)
            bought = _dot(routed.taken, routed.gain)
            row[1] = 100 * np.minimum(routed.taken, in_best[routed.oracle_rank]).sum() / k
            row[2] = bought / k
            row[3] = 100 * bought / best_sum if best_sum > 0 else np.nan
            row[4] = 100 * (routed.taken * (routed.gain <= severe)).sum() / k
    return values


def routed_gains(router: Ranking, k: int) -> Floats:
    """What each routed row brings if every row counts once: (k,), or fewer if a guard leaves places empty."""
    routed = _routed(np.ones(len(router.oracle_rank), np.uint8), router, k)
    return routed.gain[routed.taken > 0]


def _routed(counts: Integers, router: Ranking, k: int) -> Routed:
    """The rows that get one of k places; `counts` are the rows' weights in the router's order."""
    if router.contenders is None:
        taken = _first(counts, k)
        return Routed(taken, router.gain[: len(taken)], router.oracle_rank[: len(taken)])
    candidates = np.zeros_like(counts)
    first = _first(counts[: router.scored], int(router.contenders.candidates * k))
    candidates[: len(first)] = first
    taken = _first(candidates[router.contenders.order], k)
    at = router.contenders.order[: len(taken)]
    return Routed(taken, router.gain[at], router.oracle_rank[at])


def _first(counts: Integers, k: int) -> Integers:
    """How often each row is taken until k are taken; the last row may be taken in part. The rows after it
    are left out."""
    running = np.cumsum(counts, dtype=np.int32)
    k = min(k, int(running[-1])) if len(running) else 0
    end = int(np.searchsorted(running, k)) + 1 if k else 0
    taken = counts[:end].copy()
    if end:
        taken[-1] -= running[end - 1] - k
    return taken


def _ranks(counts: Integers, ties: Ties) -> Ranks:
    """Ranks of an order whose rows count `counts` times.

    t equal rows that end at rank c have average rank c - (t - 1) / 2, and ranks have the mean
    (W + 1) / 2: the value is 2c - t - W, a whole number, so sums have no cancellation errors.
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
    counts, oracle_rank = counts[: router.scored], router.oracle_rank[: router.scored]
    if router.scored < len(router.oracle_rank):  # gains are ranked again, among the rows with a score
        scored = np.zeros(len(router.oracle_rank), counts.dtype)
        scored[oracle_rank] = counts
        gain_ranks = _ranks(scored, population.ties)
    score_ranks = _ranks(counts, router.ties)
    if not (score_ranks.spread and gain_ranks.spread):
        return np.nan
    # einsum, here and below, and not BLAS: its sums are the same on any number of cores.
    shared = float(np.einsum("i,i,i", counts, gain_ranks.values[oracle_rank], score_ranks.values))
    return float(np.clip(shared / np.sqrt(score_ranks.spread * gain_ranks.spread), -1, 1))


def _dot(counts: Integers, values: Floats) -> float:
    return float(np.einsum("i,i", counts, values))


def why_undefined(population: Population, router: Ranking, metric: str) -> str:
    """Why a metric has no value, if every row counts once and the budget is one or more."""
    if metric != "spearman":
        return "the gain oracle's mean_delta is not above 0"
    if router.scored < 2:
        return "fewer than two rows have a score"
    gains = population.gain[router.oracle_rank[: router.scored]]
    return "all gains are equal" if is_constant(gains) else "all scores are equal"


def edges(severe: float) -> list[float]:
    """Bounds of the gain buckets; each bucket includes its upper bound, as in `gain <= severe`."""
    return sorted({-20.0, severe, 0.0, 5.0, 20.0})


def bucket_counts(gain: Floats, severe: float) -> list[int]:
    """Rows per gain bucket, lowest first; there is one bucket more than there are edges."""
    bounds = edges(severe)
    buckets = np.searchsorted(bounds, gain, side="left")
    return [int(count) for count in np.bincount(buckets, minlength=len(bounds) + 1)]
