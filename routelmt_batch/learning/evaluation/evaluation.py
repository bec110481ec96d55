"""Measures every router on the same labelled rows under the same budget.

It knows label tables and scores, not where the scores come from.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from routelmt_batch import __version__
from routelmt_batch.errors import UsageError
from routelmt_batch.files.write import write_text
from routelmt_batch.kinds import ORACLES, SEVERE_LOSS_GAIN
from routelmt_batch.learning.evaluation.ceiling import NO_CEILING, Ceiling, ceiling
from routelmt_batch.learning.evaluation.contest import MACRO, OVERALL, Contest, Routing, contest, doubts
from routelmt_batch.learning.evaluation.curves import area, budget_curve, by_percent
from routelmt_batch.learning.evaluation.result import Evaluation
from routelmt_batch.learning.evaluation.tables import Labels
from routelmt_batch.spec import near
from routelmt_batch.stats import measures, resampling
from routelmt_batch.stats.measures import METRICS, Floats, Integers

(ORACLE_GAIN, ORACLE_QUALITY), RANDOM = ORACLES, "random"
BUILT_IN = (*ORACLES, RANDOM)  # always in the table
_DELTA = METRICS.index("mean_delta")


def evaluate(
    labels: Labels,
    routers: Mapping[str, Routing],
    baselines: Sequence[str],
    budget: Decimal,
    severe: float = SEVERE_LOSS_GAIN,
    resamples: int | None = None,
    seed: int = 0,
    signature: Mapping[str, Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure every router, the two oracles and a random one; see `measures.measure` for the metrics.

    A direction is a population of its own, with its own k = floor(budget N_d). `macro` is the plain
    mean over directions, as in the paper's tables. Intervals are 95% bootstrap percentiles.

    Args:
        routers: by name; their arrays have one value for each row of `labels`.
        baselines: names of `routers`, or `random`; every router is compared with the best of them.
        severe: a routed row with this gain or less is a severe loss.
        resamples: of the bootstrap; by default 1000, fewer for many rows.
        signature: what labels and scores were made with; stored unchanged.
        advance: called after each resample, from any thread. The ceiling, if there is one, is resampled as
            often again.

    Raises:
        UsageError: the budget is outside 0 to 1, a name is reserved or unknown, or scores are of other rows.
    """
    rows = len(labels.quality_small)
    resamples = resampling.default_resamples(rows) if resamples is None else resamples
    _check(rows, routers, baselines, budget, resamples)
    routings = _with_references(labels, routers, seed)
    field = contest(labels, routings, budget, severe)

    def measured(weights: Integers) -> Floats:
        values = field.measure(weights)
        advance()
        return values

    point = field.measure(np.ones(rows, np.uint8))
    samples = resampling.bootstrap(rows, measured, resamples, seed)
    # The oracles see the gain that measures them, so they have no share of what can be had without it.
    blind = {name: routing for name, routing in routings.items() if name not in ORACLES}
    top = ceiling(labels, blind, budget, resamples, seed, advance)
    return Evaluation.of(
        {
            **_settings(labels, field),
            "resamples": resamples,
            "interval_percent": resampling.LEVEL_PERCENT,
            "seed": seed,
            **_results(labels, field, baselines, point, samples, top),
            "signature": dict(signature or {}),
            "versions": _versions(),
        }
    )


def _versions() -> dict[str, str]:
    return {
        "routelmt_batch": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write evaluation.json, evaluation.md, evaluation.png and evaluation.svg into a folder."""
    from routelmt_batch.learning.evaluation import figures
    from routelmt_batch.learning.evaluation.show import markdown

    evaluation.write(folder / "evaluation.json", "evaluation")
    write_text(folder / "evaluation.md", markdown(evaluation), "evaluation")
    figures.budget_curve(evaluation, folder / "evaluation")


def _check(
    rows: int, routers: Mapping[str, Routing], baselines: Sequence[str], budget: Decimal, resamples: int
) -> None:
    if not (budget.is_finite() and 0 <= budget <= 1):
        raise UsageError(f"--budget {budget}: a budget is a fraction of the rows, from 0 to 1, such as 0.3")
    if resamples < 1:
        raise UsageError(f"{resamples} resamples: an interval needs at least one; give more")
    for name, router in routers.items():
        if name in ORACLES:
            raise UsageError(f"router {name!r}: the evaluation adds a router of this name; give another name")
        if len(router.scores) != rows:
            raise UsageError(
                f"router {name!r}: {len(router.scores)} scores for {rows} rows; score the same rows"
            )
    for name in baselines:
        if name not in routers and name != RANDOM:
            known = [*routers, RANDOM]
            raise UsageError(f"baseline {name!r}: no such router{near(name, known)}; it is one of {known}")


def _with_references(labels: Labels, routers: Mapping[str, Routing], seed: int) -> dict[str, Routing]:
    """The given routers, in their order, then a random one if it is missing, then the oracles."""
    random = Routing(np.random.default_rng(seed).random(len(labels.quality_small)))
    oracles = {ORACLE_QUALITY: Routing(-labels.quality_small), ORACLE_GAIN: Routing(labels.gain)}
    return {**routers, RANDOM: routers.get(RANDOM, random), **oracles}


def _settings(labels: Labels, field: Contest) -> dict[str, Any]:
    gain = labels.gain
    return {
        "rows": len(gain),
        "budget": str(field.budget),
        "k": field.places(OVERALL),
        "severe_loss_gain": field.severe,
        "quality_small": float(labels.quality_small.mean()),
        "quality_large": float(labels.quality_large.mean()),
        "directions": {
            name: {"rows": len(field.populations[name].rows), "k": field.places(name)}
            for name in field.directions
        },
        "buckets_of_all_rows": _buckets(gain, field.severe, len(gain)),
        "expected_random": {
            "note": "expectation of a random order; the router 'random' is one draw of it",
            "spearman": 0.0,
            "hit_rate": 100 * field.places(OVERALL) / len(gain),
            "mean_delta": float(gain.mean()),
            "severe_loss_rate": 100 * float((gain <= field.severe).mean()),
        },
    }


def _results(
    labels: Labels,
    field: Contest,
    baselines: Sequence[str],
    point: Floats,
    samples: Floats,
    top: Ceiling | None,
) -> dict[str, Any]:
    rankings = dict(zip(field.names, field.rankings[OVERALL], strict=True))
    best = _best(field.names, [name for name in baselines if rankings[name].ranks], point)
    curves = {name: budget_curve(labels.quality_small, ranking) for name, ranking in rankings.items()}
    areas, warnings = _areas(labels, curves)
    routers, k = {}, field.places(OVERALL)
    for index, name in enumerate(field.names):
        routers[name] = {
            **_values(field, point[:, index], samples[:, :, index]),
            "buckets": _buckets(measures.routed_gains(rankings[name], k), field.severe, k),
            "curve": by_percent(curves[name]),
            "area": areas[name],
            "against_best_baseline": _against(field.names, best, index, point, samples),
            "attainable_share": _by_direction(top.shares(name, _value))
            if top and name in top.routers
            else None,
        }
    return {
        "baselines": list(baselines),
        "best_baseline": best,
        "ceiling": _by_direction(top.figures(_value)) if top else None,
        "ceiling_note": None if top else NO_CEILING,
        "routers": routers,
        "warnings": [
            *labels.warnings,
            *doubts(field, point, samples),
            *warnings,
            *(top.doubts() if top else ()),
        ],
    }


def _by_direction(by_population: Mapping[str, Any]) -> dict[str, Any]:
    """Values of all rows and of each direction, by population, as the record has them."""
    overall = by_population[OVERALL]
    return {
        OVERALL: overall,
        "directions": {name: one for name, one in by_population.items() if name != OVERALL},
    }


def _values(field: Contest, point: Floats, samples: Floats) -> dict[str, Any]:
    """One router's metrics over all rows, per direction and averaged over directions."""

    def of(place: int) -> dict[str, Any]:
        return {
            metric: _value(float(point[place, column]), samples[:, place, column])
            for column, metric in enumerate(METRICS)
        }

    return {
        OVERALL: of(0),
        "directions": {name: of(place) for place, name in enumerate(field.directions, 1)},
        MACRO: of(-1) if field.directions else {},
    }


def _value(point: float, samples: Floats) -> dict[str, float | None]:
    if np.isnan(point):
        return {"value": None, "low": None, "high": None}
    low, high = resampling.interval(samples)
    return {"value": point, "low": low, "high": high}


def _best(names: Sequence[str], baselines: Sequence[str], point: Floats) -> str | None:
    """The baseline with the highest mean_delta over all rows; the first of equals."""
    deltas = {name: point[0, names.index(name), _DELTA] for name in baselines}
    defined = [name for name in deltas if not np.isnan(deltas[name])]
    return max(defined, key=lambda name: deltas[name]) if defined else None


def _against(
    names: Sequence[str], best: str | None, index: int, point: Floats, samples: Floats
) -> dict[str, Any] | None:
    """The paired difference in mean_delta from the best baseline; None for that baseline, or without one."""
    if best is None or best == names[index] or np.isnan(point[0, index, _DELTA]):
        return None
    other = names.index(best)
    found = resampling.compare(samples[:, 0, index, _DELTA] - samples[:, 0, other, _DELTA])
    return {
        "baseline": best,
        "mean_delta": {
            "value": float(point[0, index, _DELTA] - point[0, other, _DELTA]),
            "low": found.low,
            "high": found.high,
        },
        "p_value": found.p_value,
    }


def _buckets(gain: Floats, severe: float, total: int) -> list[dict[str, Any]]:
    """Rows per gain bucket, lowest first: above `over`, up to and including `to` (None: no bound), and their
    percentage of `total` rows."""
    bounds = [None, *measures.edges(severe), None]
    counts = measures.bucket_counts(gain, severe)
    return [
        {"over": over, "to": to, "rows": rows, "percent": 100 * rows / total if total else None}
        for over, to, rows in zip(bounds, bounds[1:], counts, strict=False)
    ]


def _areas(
    labels: Labels, curves: Mapping[str, Floats]
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Area under each router's budget curve, and where it lies between random (0) and an oracle (1).

    Random is the straight line from the small model's mean quality to the large one's, its expectation.
    """
    areas = {name: area(curve) for name, curve in curves.items()}
    random = float(labels.quality_small.mean() + labels.gain.mean() / 2)
    rooms = {oracle: areas[oracle] - random for oracle in ORACLES}
    # A smaller difference is rounding: with equal gains every order has the curve of random.
    least = 1e-9 * max(1.0, abs(random))
    warnings = [
        f"the area relative to {RANDOM} and {oracle} is undefined: {oracle} is no better than random"
        for oracle, room in rooms.items()
        if room <= least
    ]

    def share(found: float, oracle: str) -> float | None:
        return (found - random) / rooms[oracle] if rooms[oracle] > least else None

    return {
        name: {
            "value": found,
            RANDOM: random,
            f"of_{ORACLE_GAIN}": share(found, ORACLE_GAIN),
            f"of_{ORACLE_QUALITY}": share(found, ORACLE_QUALITY),
        }
        for name, found in areas.items()
    }, warnings
