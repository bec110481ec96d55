"""Compares routers on the same rows: on all rows together, and on each direction alone.

It measures, and warns about what cannot be measured. It formats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from routelmt_batch.learning.evaluation.tables import Labels
from routelmt_batch.stats import measures
from routelmt_batch.stats.measures import FEW_ROWS, METRICS, Floats, Guard, Integers, Population, Ranking
from routelmt_batch.stats.selection import places

OVERALL, MACRO = "overall", "macro"


@dataclass(frozen=True)
class Routing:
    """How rows are routed: a router's scores, its guard, and which rows keep the small translation although
    they are routed, (rows,) each; see `measures.ranking`."""

    scores: Floats
    guard: Guard | None = None
    keeps_small: npt.NDArray[np.bool_] | None = None

    def ranking(self, population: Population, rows: Integers) -> Ranking:
        """The order over a population that consists of these rows."""
        guard = self.guard and replace(self.guard, quality=self.guard.quality[rows])
        brings = None
        if self.keeps_small is not None:
            brings = np.where(self.keeps_small[rows], 0.0, population.gain_by_row)
        return measures.ranking(population, self.scores[rows], guard, brings)


@dataclass(frozen=True)
class Contest:
    """The rankings of all routers, ready to be measured.

    `populations` has OVERALL first, then the directions; `rankings` has a list for each population, in the
    order of `names`.
    """

    names: tuple[str, ...]
    populations: dict[str, Population]
    rankings: dict[str, list[Ranking]]
    budget: Decimal
    severe: float

    @property
    def directions(self) -> list[str]:
        return list(self.populations)[1:]

    def places(self, population: str) -> int:
        """k = floor(p N) of one population."""
        return places(self.budget, len(self.populations[population].rows))

    def measure(self, weights: Integers) -> Floats:
        """(populations, then the mean over directions; routers; METRICS), rows counted by their weights."""
        values = [
            measures.measure(population, self.rankings[name], weights, self.budget, self.severe)
            for name, population in self.populations.items()
        ]
        # Undefined if one direction is: a mean over the others would be a different number.
        macro = np.mean(values[1:], axis=0) if self.directions else np.full_like(values[0], np.nan)
        return np.stack([*values, macro])


def parts(direction: Integers, directions: Sequence[str]) -> dict[str, Integers]:
    """The indexes of all rows, and of those of each direction."""
    by_name = {name: np.flatnonzero(direction == index) for index, name in enumerate(directions)}
    return {OVERALL: np.arange(len(direction)), **by_name}


def contest(labels: Labels, routers: Mapping[str, Routing], budget: Decimal, severe: float) -> Contest:
    gain, rows = labels.gain, parts(labels.direction, labels.directions)
    populations = {name: measures.population(gain, selected) for name, selected in rows.items()}
    rankings = {
        name: [router.ranking(populations[name], selected) for router in routers.values()]
        for name, selected in rows.items()
    }
    return Contest(tuple(routers), populations, rankings, budget, severe)


def doubts(contest: Contest, point: Floats, samples: Floats) -> list[str]:
    """Warnings about the numbers: few rows, missing scores, undefined values.

    `point` (populations, routers, metrics) and `samples` (resamples, ...) are as `measure` gives them.
    """
    return [
        *_thin(contest),
        *_unscored(contest),
        *_level(contest),
        *_no_places(contest),
        *_undefined(contest, point),
        *_undefined_in_resamples(contest, point, samples),
    ]


def _thin(contest: Contest) -> list[str]:
    found = []
    for name, population in contest.populations.items():
        rows = len(population.rows)
        if rows < FEW_ROWS:
            found.append(f"{name}: {rows} rows are few (below {FEW_ROWS}): intervals are wide and unreliable")
        if measures.is_constant(population.gain):
            found.append(
                f"{name}: every gain is {population.gain[0]:g}: routing makes no "
                "difference here, so routers cannot be compared"
            )
    return found


def _unscored(contest: Contest) -> list[str]:
    found = []
    for name in contest.populations:
        for router, ranking in zip(contest.names, contest.rankings[name], strict=True):
            without, k = ranking.rows - ranking.scored, contest.places(name)
            if without and name == OVERALL:
                found.append(f"{router}: {without:,} of {ranking.rows:,} rows have no score; they rank last")
            if ranking.contenders:
                found.extend(_empty(f"{router}, {name}", ranking, k))
            elif k > ranking.scored:
                found.append(
                    f"{router}, {name}: {k - ranking.scored:,} of the {k:,} routed rows have no score; "
                    "they are taken in row order (a job would send them to the small model)"
                )
    return found


def _empty(name: str, ranking: Ranking, k: int) -> list[str]:
    empty = k - len(measures.routed_gains(ranking, k))
    if not empty:
        return []
    return [
        f"{name}: {empty:,} of the {k:,} places stay empty and bring 0: the guard has no more candidates "
        "with a score and without a good small translation"
    ]


def _level(contest: Contest) -> list[str]:
    """Routers whose scores are all equal. A direction leaves out those that are named for all rows."""
    found, named = [], set[str]()
    for name in contest.populations:
        routers = [
            router
            for router, ranking in zip(contest.names, contest.rankings[name], strict=True)
            if ranking.scored and not ranking.ranks and not ranking.contenders and router not in named
        ]
        if name == OVERALL:
            named.update(routers)
        if routers and (k := contest.places(name)):
            found.append(
                f"{name}: all scores of {', '.join(routers)} are equal, so the routed rows are the "
                f"first {k:,}"
            )
    return found


def _no_places(contest: Contest) -> list[str]:
    without = [name for name in contest.populations if not contest.places(name)]
    if not without:
        return []
    return [
        f"{', '.join(without)}: --budget {contest.budget} is less than one row there: nothing is "
        "routed, and only Spearman is defined"
    ]


def _undefined(contest: Contest, point: Floats) -> list[str]:
    """Undefined values that the budget does not explain; see _no_places."""
    causes: dict[tuple[str, str, str], list[str]] = {}
    where: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for column, metric in enumerate(METRICS):
        for index, router in enumerate(contest.names):
            undefined = [
                name
                for name, value in zip(contest.populations, point[:, index, column], strict=False)
                if np.isnan(value) and (metric == "spearman" or contest.places(name))
            ]
            for name in undefined:
                population, ranking = contest.populations[name], contest.rankings[name][index]
                why = measures.why_undefined(population, ranking, metric)
                causes.setdefault((name, metric, why), []).append(router)
            if directions := tuple(name for name in undefined if name != OVERALL):
                where.setdefault((metric, directions), []).append(router)
    return [
        *(
            f"{name}: {metric} is undefined for {_listed(routers, contest)}: {why}"
            for (name, metric, why), routers in causes.items()
        ),
        *(
            f"{MACRO}: {metric} of {_listed(routers, contest)} has no mean over directions: it is undefined "
            f"in {', '.join(directions)}"
            for (metric, directions), routers in where.items()
        ),
    ]


def _undefined_in_resamples(contest: Contest, point: Floats, samples: Floats) -> list[str]:
    """Values that are defined, but not in every resample."""
    missing = np.isnan(samples).sum(axis=0) * ~np.isnan(point)
    found = []
    for name, by_router in zip((*contest.populations, MACRO), missing, strict=True):
        for metric, counts in zip(METRICS, by_router.T, strict=True):
            if counts.any():
                routers = [router for router, count in zip(contest.names, counts, strict=True) if count]
                found.append(
                    f"{name}: {metric} is undefined in up to {int(counts.max()):,} of {len(samples):,} "
                    f"resamples for {_listed(routers, contest)}; the interval comes from the others"
                )
    return found


def _listed(routers: list[str], contest: Contest) -> str:
    return "every router" if len(routers) == len(contest.names) else ", ".join(routers)
