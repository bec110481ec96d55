"""The ceiling: what a router would bring that knew one human's gain, measured by another human's gain.

It needs sources with several references. The gain by one reference orders them and the gain by another
measures the order, in both orders; the two results are averaged. It knows arrays, not files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias, TypeVar

import numpy as np

from routelmt_batch.learning.evaluation.contest import Contest, Routing, parts
from routelmt_batch.learning.evaluation.tables import Labels
from routelmt_batch.learning.gains import Halves
from routelmt_batch.stats import measures, resampling
from routelmt_batch.stats.measures import FEW_ROWS, METRICS, Floats, Integers

T = TypeVar("T")
Told: TypeAlias = Callable[[float, Floats], T]  # makes a figure of its value and its samples

NO_CEILING = (
    "No ceiling: no source has several references, so it is not known how much of the oracle's MeanDelta is "
    "noise. To know it, label sources that have several references: a list in the reference column, or a row "
    "for each."
)
# The figures of a population, in the order of the columns; the routers' attainable shares follow them.
FIGURES = ("mean_delta", "oracle_mean_delta", "random_mean_delta", "correlation")
_CEILING, _RANDOM = FIGURES.index("mean_delta"), FIGURES.index("random_mean_delta")
_DELTA = METRICS.index("mean_delta")
# The half of the gains that orders, and the half that measures: the other one, then the same one.
_ORDERS = ((0, 1), (1, 0), (0, 0), (1, 1))
_LEAST = 1e-6  # points: finer than any measured quality, and coarser than rounding errors


@dataclass(frozen=True)
class Ceiling:
    """The figures and the routers' attainable shares: `point` (populations, FIGURES + routers) and `samples`
    (resamples, ...)."""

    contest: Contest
    routers: tuple[str, ...]
    point: Floats
    samples: Floats

    def figures(self, told: Told[T]) -> dict[str, dict[str, int | T]]:
        """By population: its sources, its places, and FIGURES."""
        return {
            name: {
                "sources": len(population.rows),
                "k": self.contest.places(name),
                **{figure: self._told(told, place, column) for column, figure in enumerate(FIGURES)},
            }
            for place, (name, population) in enumerate(self.contest.populations.items())
        }

    def shares(self, router: str, told: Told[T]) -> dict[str, T]:
        """A router's attainable share by population, in percent."""
        column = len(FIGURES) + self.routers.index(router)
        return {name: self._told(told, place, column) for place, name in enumerate(self.contest.populations)}

    def _told(self, told: Told[T], place: int, column: int) -> T:
        return told(float(self.point[place, column]), self.samples[:, place, column])

    def doubts(self) -> Iterator[str]:
        """Warnings: few sources, no places, a ceiling that is not above random."""
        for place, (name, population) in enumerate(self.contest.populations.items()):
            sources = len(population.rows)
            if sources < FEW_ROWS:
                yield (
                    f"ceiling, {name}: {sources} sources with several references are few (below {FEW_ROWS}): "
                    "its intervals are wide and unreliable"
                )
            if not self.contest.places(name):
                yield (
                    f"ceiling, {name}: undefined, because --budget {self.contest.budget} is less than one of "
                    f"{sources} sources"
                )
            elif not self._room(self.point)[place] > _LEAST:
                yield (
                    f"ceiling, {name}: not above random, so attainable_share is undefined: the gain by one "
                    "reference does not tell where the gain by another is high"
                )
            elif undefined := int((~(self._room(self.samples)[:, place] > _LEAST)).sum()):
                yield (
                    f"ceiling, {name}: not above random in {undefined:,} of {len(self.samples):,} resamples; "
                    "the interval of attainable_share comes from the others"
                )

    def _room(self, values: Floats) -> Floats:
        return values[..., _CEILING] - values[..., _RANDOM]


def ceiling(
    labels: Labels,
    routers: Mapping[str, Routing],
    budget: Decimal,
    resamples: int,
    seed: int,
    advance: Callable[[], None],
) -> Ceiling | None:
    """The ceiling and each router's part of it, on the sources with several references; None without any.

    A source's gain is the mean of its two halves. Routers see it as its first row. Sources are resampled,
    all figures together.
    """
    halves = labels.halves
    if not len(halves.of):
        return None
    field = _contest(labels, routers, budget)

    def measured(weights: Integers) -> Floats:
        values = _measure(field, halves, weights)
        advance()
        return values

    point = _measure(field, halves, np.ones(len(halves.of), np.uint8))
    samples = resampling.bootstrap(len(halves.of), measured, resamples, seed)
    return Ceiling(field, tuple(routers), point, samples)


def _contest(labels: Labels, routers: Mapping[str, Routing], budget: Decimal) -> Contest:
    """The rankings of _ORDERS, then those of the routers. A direction without such a source is left out."""
    halves, gains = labels.halves, (labels.halves.first, labels.halves.second)
    selected = parts(labels.direction[halves.of], labels.directions)
    populations = {
        name: measures.population(halves.gain, rows) for name, rows in selected.items() if len(rows)
    }
    rankings = {}
    for name, population in populations.items():
        rows = selected[name]
        rankings[name] = [
            *(measures.ranking(population, gains[a][rows], brings=gains[b][rows]) for a, b in _ORDERS),
            *(router.ranking(population, halves.of[rows]) for router in routers.values()),
        ]
    names = (*(f"half {a} measured by half {b}" for a, b in _ORDERS), *routers)
    return Contest(names, populations, rankings, budget, severe=0.0)


def _measure(field: Contest, halves: Halves, weights: Integers) -> Floats:
    """FIGURES and the attainable shares of each population, sources counted by their weights."""
    populations = field.populations.values()
    deltas = field.measure(weights)[: len(populations), :, _DELTA]
    across, within, routers = deltas[:, :2].mean(axis=1), deltas[:, 2:4].mean(axis=1), deltas[:, 4:]
    random = np.array([_mean(one.gain, weights[one.rows]) for one in populations])
    correlations = [
        _pearson(halves.first[p.rows], halves.second[p.rows], weights[p.rows]) for p in populations
    ]
    room = across - random
    room = np.where(room > _LEAST, room, np.nan)
    shares = 100 * (routers - random[:, None]) / room[:, None]
    return np.column_stack([across, within, random, correlations, shares])


def _mean(values: Floats, weights: Integers) -> float:
    total = int(weights.sum())
    return float(np.einsum("i,i", weights, values)) / total if total else np.nan


def _pearson(first: Floats, second: Floats, weights: Integers) -> float:
    """Pearson's correlation of weighted rows; NaN if either side is constant."""
    first, second = first - _mean(first, weights), second - _mean(second, weights)
    spreads = _mean(first * first, weights), _mean(second * second, weights)
    if not min(spreads) > _LEAST**2:
        return np.nan
    return float(np.clip(_mean(first * second, weights) / np.sqrt(spreads[0] * spreads[1]), -1, 1))
