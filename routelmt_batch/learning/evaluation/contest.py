"""All routers side by side on the same rows: over all of them, and over each direction alone.

It knows what is measured and what cannot be, not how it is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np

from routelmt_batch.learning.evaluation.tables import Labels
from routelmt_batch.stats import measures
from routelmt_batch.stats.measures import FEW_ROWS, METRICS, Floats, Guard, Integers, Population, Ranking
from routelmt_batch.stats.selection import places

OVERALL, MACRO = "overall", "macro"


@dataclass(frozen=True)
class Routing:
    """What routes rows, (rows,) each: a router's scores, what guards it, and what routed rows bring where
    that is not their gain; see `measures.ranking`."""

    scores: Floats
    guard: Guard | None = None
    brings: Floats | None = None

    def ranking(self, population: Population, rows: Integers) -> Ranking:
        """The order over a population whose rows these are."""
        guard = self.guard and replace(self.guard, quality=self.guard.quality[rows])
        brings = None if self.brings is None else self.brings[rows]
        return measures.ranking(population, self.scores[rows], guard, brings)


@dataclass(frozen=True)
class Contest:
    """Orders of all routers, ready to be measured.

    `populations` has OVERALL first, then the directions; `rankings` are of each population, in the
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
        """(populations, then the directions' mean; routers; METRICS) of rows that count so often."""
        values = [
            measures.measure(population, self.rankings[name], weights, self.budget, self.severe)
            for name, population in self.populations.items()
        ]
        # Undefined where one direction is: the mean of the others would be another number.
        macro = np.mean(values[1:], axis=0) if self.directions else np.full_like(values[0], np.nan)
        return np.stack([*values, macro])


def contest(labels: Labels, routers: Mapping[str, Routing], budget: Decimal, severe: float) -> Contest:
    gain = labels.gain
    rows = {OVERALL: np.arange(len(gain))}
    for index, name in enumerate(labels.directions):
        rows[name] = np.flatnonzero(labels.direction == index)
    populations = {name: measures.population(gain, of_it) for name, of_it in rows.items()}
    rankings = {
        name: [router.ranking(populations[name], of_it) for router in routers.values()]
        for name, of_it in rows.items()
    }
    return Contest(tuple(routers), populations, rankings, budget, severe)


def doubts(contest: Contest, point: Floats, samples: Floats) -> list[str]:
    """What the reader of the numbers must know: thin data, missing scores, undefined values.

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
            found.append(f"{name}: {rows} rows are few (below {FEW_ROWS}): intervals are wide and unsure")
        if measures.is_constant(population.gain):
            found.append(
                f"{name}: every gain is {population.gain[0]:g}: routing cannot matter here, and "
                "which rows a router takes says nothing about it"
            )
    return found


def _unscored(contest: Contest) -> list[str]:
    found = []
    for name in contest.populations:
        for router, ranking in zip(contest.names, contest.rankings[name], strict=True):
            without, k = ranking.rows - ranking.scored, contest.places(name)
            if without and name == OVERALL:
                found.append(f"{router}: {without:,} of {ranking.rows:,} rows have no score; they come last")
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
        "that have a score and no good small translation"
    ]


def _level(contest: Contest) -> list[str]:
    """Routers whose scores say nothing; in a direction only what is not told of all rows."""
    found, told = [], set[str]()
    for name in contest.populations:
        routers = [
            router
            for router, ranking in zip(contest.names, contest.rankings[name], strict=True)
            if ranking.scored and not ranking.ranks and not ranking.contenders and router not in told
        ]
        if name == OVERALL:
            told.update(routers)
        if routers and (k := contest.places(name)):
            found.append(
                f"{name}: all scores of {', '.join(routers)} are equal: the routed rows are simply the "
                f"first {k:,}"
            )
    return found


def _no_places(contest: Contest) -> list[str]:
    without = [name for name in contest.populations if not contest.places(name)]
    if not without:
        return []
    return [
        f"{', '.join(without)}: --budget {contest.budget} is no row there: nothing is routed, and of "
        "the metrics Spearman alone is defined"
    ]


def _undefined(contest: Contest, point: Floats) -> list[str]:
    """Values without one that the budget does not explain; see _no_places."""
    causes: dict[tuple[str, str, str], list[str]] = {}
    where: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for column, metric in enumerate(METRICS):
        for index, router in enumerate(contest.names):
            gone = [
                name
                for name, value in zip(contest.populations, point[:, index, column], strict=False)
                if np.isnan(value) and (metric == "spearman" or contest.places(name))
            ]
            for name in gone:
                population, ranking = contest.populations[name], contest.rankings[name][index]
                why = measures.why_undefined(population, ranking, metric)
                causes.setdefault((name, metric, why), []).append(router)
            if directions := tuple(name for name in gone if name != OVERALL):
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
    """Values that are defined while some of their resamples are not."""
    missing = np.isnan(samples).sum(axis=0) * ~np.isnan(point)
    found = []
    for name, of_it in zip((*contest.populations, MACRO), missing, strict=True):
        for metric, counts in zip(METRICS, of_it.T, strict=True):
            if counts.any():
                routers = [router for router, count in zip(contest.names, counts, strict=True) if count]
                found.append(
                    f"{name}: {metric} is undefined in up to {int(counts.max()):,} of {len(samples):,} "
                    f"resamples for {_listed(routers, contest)}; the interval is of the others"
                )
    return found


def _listed(routers: list[str], contest: Contest) -> str:
    return "every router" if len(routers) == len(contest.names) else ", ".join(routers)
