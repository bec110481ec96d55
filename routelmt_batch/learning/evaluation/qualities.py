"""Finds the source of each quality that guards name: a router's predictions, a metric, or a table column.

It does not know what guards do with qualities.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from routelmt_batch.errors import UsageError
from routelmt_batch.kinds import KINDS, ROUTER_FOLDER
from routelmt_batch.learning.evaluation.guards import Guarded
from routelmt_batch.routers.card import read_card
from routelmt_batch.rows import LARGE, SMALL, Route
from routelmt_batch.spec import COMET, Metric, near
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.spec.file import expanded

ROUTES: Final[tuple[Route, Route]] = (SMALL, LARGE)


@dataclass(frozen=True)
class Qualities:
    """The qualities that guards name: `predicted` by these routers, `measured` by a metric on the
    translations of these models, `columns` of the tables."""

    predicted: tuple[str, ...]
    measured: dict[str, tuple[Route, ...]]
    columns: tuple[str, ...]


def measured_name(metric: str, route: Route) -> str:
    return f"{metric}_{route}"


def parse_metrics(
    given: Iterable[str], taken: Collection[str], allow_pickle: bool = False
) -> dict[str, Metric]:
    """Parse `NAME=METRIC` into metrics by name.

    Raises:
        UsageError: a name is taken, or the value is not a metric.
    """
    found: dict[str, Metric] = {}
    for text in given:
        name, _, source = text.partition("=")
        if not name or name in found or name in taken:
            raise UsageError(f"--metric {text}: give NAME=METRIC, with a name that nothing else has")
        path = expanded(Path(source.removeprefix(COMET)))
        if source.startswith(COMET) and path.exists():
            source = f"{COMET}{path.resolve()}"
        try:
            found[name] = Metric.model_validate({"source": source, "allow_pickle": allow_pickle})
        except ValidationError as error:
            raise UsageError(f"--metric {text}: {error.errors()[0]['msg']}") from None
    return found


def find_qualities(
    guarded: Collection[Guarded],
    routers: Mapping[str, RouterSpec],
    metrics: Mapping[str, Metric],
    columns: Collection[str],
) -> Qualities:
    """Find the source of each quality; `columns` are those of the tables.

    Raises:
        UsageError: a quality has no source or two, its router predicts no quality, or no guard uses a metric.
    """
    names = list(dict.fromkeys(name for one in guarded for name in one.qualities))
    by_metric = {measured_name(metric, route): (metric, route) for metric in metrics for route in ROUTES}
    if twice := by_metric.keys() & set(columns):
        raise UsageError(f"--metric: the tables have a column {min(twice)}; give the metric another name")
    if idle := metrics.keys() - {by_metric[name][0] for name in names if name in by_metric}:
        raise UsageError(
            f"--metric {min(idle)}: no --guard and no --verify names {min(idle)}_small or {min(idle)}_large"
        )
    for one in guarded:
        for name in one.qualities:
            if name in routers:
                _check_predicts(one, name, routers[name])
            elif name not in by_metric and name not in columns:
                known = [*routers, *by_metric, *columns]
                raise UsageError(
                    f"{one.option}: {name!r} is not a router, a metric's quality or a column of the tables"
                    f"{near(name, known)} (columns: {', '.join(columns)})"
                )
    predicted = tuple(name for name in names if name in routers)
    measured: dict[str, tuple[Route, ...]] = {}
    for name in names:
        if name in by_metric and name not in routers:
            metric, route = by_metric[name]
            measured[metric] = (*measured.get(metric, ()), route)
    return Qualities(predicted, measured, tuple(name for name in names if name not in {*routers, *by_metric}))


def _check_predicts(one: Guarded, name: str, router: RouterSpec) -> None:
    if KINDS[router.kind] is not ROUTER_FOLDER or read_card(router.source).target != "quality":
        raise UsageError(
            f"{one.option}: the router {name} does not predict the small translation's quality; name one "
            "trained with target: quality, or a column of qualities"
        )
