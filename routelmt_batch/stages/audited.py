"""The report's figures on the router: predicted against realised gain, drift, and when to retrain.

Realised gains are those of the sample. Each of its rows is weighted by the number of the job's rows in its
stratum that it represents, so that the sample's top share by predicted gain represents the job's, even if
a stratum has few rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.kinds import SEVERE_LOSS_GAIN
from routelmt_batch.rows import AUDIT_QUALITY, AUDIT_TRANSLATIONS, LARGE, SAMPLE, SMALL, Route
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.audit import sample_work
from routelmt_batch.stages.gains import CommittedGains
from routelmt_batch.stages.measure import quality_by_row
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stats import measures
from routelmt_batch.stats.drift import PSI_SHIFTED, PSI_WATCH, Drift, at_most, from_quantiles
from routelmt_batch.stats.measures import METRICS, Floats, Integers
from routelmt_batch.stats.resampling import bootstrap, compare, interval
from routelmt_batch.stats.selection import places

_RESAMPLES = 1000
_GROUPS = 5
_WEIGHT = 1_000_000_000  # sum of a sample's row weights, which are whole numbers; it fits 32 bits
_ALIKE = 1e-9  # mean gains closer than this differ only by the order of summation


def audited(workspace: Job, plan: Plan) -> dict[str, Any]:
    """`audit` (None without one), `drift` (None without a calibrated router) and `advice`."""
    figures = _audit(workspace, plan)
    moved = _drift(workspace)
    return {
        "audit": figures,
        "drift": vars(moved) if moved else None,
        "advice": advice(figures if workspace.recipe.router.card else None, moved),
    }


def _audit(workspace: Job, plan: Plan) -> dict[str, Any] | None:
    ledger = workspace.ledger
    event = next(ledger.events_of("audit"), None)
    if event is None or not workspace.spec.audit.fraction:
        return None
    rows = plan.calls_with_gain
    # The planned share, rounded up so that, of the job's rows, it gives the planned number.
    fraction = (Decimal(plan.large) / max(rows, 1)).quantize(Decimal("1e-12"), ROUND_UP)
    return {
        "sampled": event["rows"],
        "strata": event["strata"],
        "fraction": str(fraction),
        # Outside the budget: translations made for the audit.
        "calls": {route: ledger.rows(AUDIT_TRANSLATIONS, route) for route in (SMALL, LARGE)},
        "cut": {route: ledger.totals(AUDIT_QUALITY, route).sums["cut"] for route in (SMALL, LARGE)},
        **summarise(_rows(workspace, event["strata"]), fraction, workspace.spec.audit.seed),
    }


def _rows(workspace: Job, strata: Mapping[str, int]) -> Audited:
    """The sample's rows with both qualities, in row order; `strata` counts the job's rows by stratum."""
    tables = [SAMPLE.schema.empty_table()]
    qualities: dict[Route, list[Floats]] = {SMALL: [np.zeros(0)], LARGE: [np.zeros(0)]}
    for work in sample_work(workspace):
        rows = work.committed(SAMPLE)
        tables.append(rows)
        for route, parts in qualities.items():
            parts.append(quality_by_row(work, route)[work.offsets(rows)])
    realised = np.concatenate(qualities[LARGE]) - np.concatenate(qualities[SMALL])
    known = ~np.isnan(realised)
    sample = pa.concat_tables(tables).filter(pa.array(known))
    return Audited(
        sample["gain"].to_numpy().astype(np.float64),
        realised[known],
        sample["source_tokens"].to_numpy().astype(np.float64),
        sample["direction"].to_numpy(zero_copy_only=False),
        _weights(sample, strata),
    )


def _weights(sample: pa.Table, strata: Mapping[str, int]) -> Integers:
    """(n,) whole numbers in proportion to the job's rows that each row of the sample represents."""
    names = np.array([f"{row['direction']} {row['route']}" for row in sample.to_pylist()], object)
    drawn = Counter(names)
    rows = np.array([strata[name] / drawn[name] for name in names])
    weights: Integers = np.maximum(1, np.round(rows * (_WEIGHT / max(rows.sum(), 1)))).astype(np.int64)
    return weights


def _drift(workspace: Job) -> Drift | None:
    """Drift of the job's scores from those of the router's calibration, in one read."""
    card = workspace.recipe.router.card
    if not (card and card.calibration):
        return None
    quantiles = np.array(card.calibration.quantiles)
    below, rows = at_most(CommittedGains(workspace, by_row=True)(keys=False), quantiles)
    return from_quantiles(below, rows, quantiles, card.calibration.rows) if rows else None


@dataclass(frozen=True)
class Audited:
    """Rows of the sample that both models translated and the metric scored, (n,) each."""

    predicted: Floats
    realised: Floats
    source_tokens: Floats
    direction: npt.NDArray[np.object_]
    weights: Integers  # whole numbers, in proportion to the rows that each represents


def summarise(rows: Audited, fraction: Decimal, seed: int) -> dict[str, Any]:
    """Agreement of predicted and realised gain, and what the budget buys by router, length and chance.

    Returns:
        `rows`; `realised`, `predicted` (mean gain, x100 scale); `spearman`, `mean_delta` of router,
        length and random, `severe_loss_rate` (percent of routed rows), each {value, low, high} with a
        95% bootstrap interval; paired differences; `groups` (fifths by predicted gain) and `directions`.
        Only `rows` if there are fewer than two rows, or if the budget routes none of them.
    """
    n = len(rows.realised)
    if n < 2 or not places(fraction, n):
        return {"rows": n}
    population = measures.population(rows.realised, np.arange(n))
    rankings = [measures.ranking(population, scores) for scores in (rows.predicted, rows.source_tokens)]

    def measured(counts: Integers) -> Floats:
        """(router, length, chance; METRICS): chance has only the mean gain."""
        weights = counts * rows.weights
        chance = np.full(len(METRICS), np.nan)
        chance[METRICS.index("mean_delta")] = np.average(rows.realised, weights=weights)
        ranked = measures.measure(population, rankings, weights, fraction, SEVERE_LOSS_GAIN)
        return np.vstack([ranked, chance])

    point = measured(np.ones(n, np.int64))
    samples = bootstrap(n, measured, _RESAMPLES, seed)

    def value(row: int, metric: str) -> dict[str, float | None]:
        column = METRICS.index(metric)
        low, high = interval(samples[:, row, column])
        here = float(point[row, column])
        return {"value": None if np.isnan(here) else here, "low": low, "high": high}

    delta = METRICS.index("mean_delta")
    return {
        "rows": n,
        "predicted": float(np.average(rows.predicted, weights=rows.weights)),
        "realised": float(np.average(rows.realised, weights=rows.weights)),
        "spearman": value(0, "spearman"),
        "mean_delta": {
            name: value(row, "mean_delta") for row, name in enumerate(("router", "length", "random"))
        },
        "router_above": {
            name: {
                "value": float(point[0, delta] - point[row, delta]),
                **vars(compare(samples[:, 0, delta] - samples[:, row, delta])),
            }
            for row, name in ((1, "length"), (2, "random"))
        },
        "severe_loss_rate": value(0, "severe_loss_rate"),
        "groups": [
            _means(rows, part) for part in np.array_split(np.argsort(rows.predicted, kind="stable"), _GROUPS)
        ],
        "directions": {
            name: _means(rows, np.flatnonzero(rows.direction == name)) for name in sorted(set(rows.direction))
        },
    }


def _means(rows: Audited, part: Integers) -> dict[str, Any]:
    if not len(part):
        return {"rows": 0, "predicted": None, "realised": None}
    weights = rows.weights[part]
    return {
        "rows": len(part),
        "predicted": float(np.average(rows.predicted[part], weights=weights)),
        "realised": float(np.average(rows.realised[part], weights=weights)),
    }


def advice(audit_figures: dict[str, Any] | None, drifted: Drift | None) -> list[str]:
    """Advice in words that follows from the figures; empty if there is nothing to do."""
    lines = []
    if drifted and drifted.psi <= drifted.psi_by_chance:
        drifted = None  # too few rows to tell
    if drifted and drifted.psi >= PSI_SHIFTED:
        lines.append(
            "the job's scores differ from those that the router was calibrated on (population stability "
            f"index {drifted.psi:.2f}; {PSI_SHIFTED} or more: another population): label rows of this "
            "corpus, retrain the router on them, and calibrate it"
        )
    elif drifted and drifted.psi >= PSI_WATCH:
        lines.append(
            "the job's scores have moved from those that the router was calibrated on (population stability "
            f"index {drifted.psi:.2f}): calibrate it on rows of this corpus, and watch the next jobs"
        )
    for name, above in (audit_figures or {}).get("router_above", {}).items():
        if max(abs(above["low"]), abs(above["high"])) < _ALIKE:
            continue  # both route the same rows
        if above["high"] < 0:
            lines.append(
                f"routing by {name} would have gained {-above['value']:.2f} a row more than the router "
                f"({-above['high']:.2f} to {-above['low']:.2f}, 95%): retrain the router on labels of this "
                "corpus"
            )
        elif above["low"] <= 0:
            lines.append(
                f"the audit cannot tell the router from routing by {name} (difference {above['low']:.2f} to "
                f"{above['high']:.2f} a row, 95%): if larger audits agree, retrain the router on labels of "
                "this corpus"
            )
    return lines
