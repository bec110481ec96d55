"""Runs routers and guards over label tables, and has `evaluation` compare them.

Routers run as in a job. All qualities, scores and hashes of texts are in memory at once (8 bytes a row each):
label tables are much smaller than a corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import OutputError, UsageError
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.uris import locate
from routelmt_batch.job.flow import OpenEngine
from routelmt_batch.kinds import KINDS, ORACLES, SEVERE_LOSS_GAIN, SMALL_MODEL
from routelmt_batch.learning.evaluation import guards
from routelmt_batch.learning.evaluation.contest import Routing
from routelmt_batch.learning.evaluation.evaluation import BUILT_IN, RANDOM, write
from routelmt_batch.learning.evaluation.evaluation import evaluate as measure
from routelmt_batch.learning.evaluation.guards import Guarded, GuardSettings
from routelmt_batch.learning.evaluation.qualities import (
    Qualities,
    find_qualities,
    measured_name,
    parse_metrics,
)
from routelmt_batch.learning.evaluation.result import Evaluation
from routelmt_batch.learning.evaluation.tables import Labels, read_tables
from routelmt_batch.learning.labels import LabelTable, Signature, check_texts, find, signatures
from routelmt_batch.learning.measuring import Measured, measure_tables
from routelmt_batch.learning.scoring import Scored, router_spec, score_tables
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import raw_card, read_card
from routelmt_batch.spec import Metric, near
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.spec.file import expanded
from routelmt_batch.stats.measures import Floats
from routelmt_batch.stats.resampling import default_resamples
from routelmt_batch.store import checkpoints
from routelmt_batch.store.folder import WORK, Folder


@dataclass(frozen=True)
class Settings:
    """The options of an evaluation, besides its tables."""

    budget: Decimal
    routers: Sequence[str] = ()
    score_columns: Sequence[str] = ()
    guards: GuardSettings = field(default_factory=GuardSettings)
    severe: float = SEVERE_LOSS_GAIN
    resamples: int | None = None
    seed: int = 0
    dtype: str = "auto"


def evaluate(
    tables: Sequence[str], settings: Settings, out: Path, bars: Bars, open_engine: OpenEngine
) -> Evaluation:
    """Run routers and guards over label tables, measure them, write evaluation.json, .md, .png and .svg.

    Raises:
        UsageError: tables and routers do not fit. It is raised before an engine starts.
    """
    found = find(tables)
    selected = _select(found, settings)
    labels = read_tables(tables, [*settings.score_columns, *selected.qualities.columns])
    _make_folder(out)
    made = signatures(found)
    run = Run({}, {})
    if selected.routers or selected.metrics:
        folder = Folder(DiskLocation(out))
        with open_engine(folder) as engine:
            run = _run(tables, selected, out, made, engine, bars)
    qualities = run.qualities(labels, selected.qualities)
    labels.warnings.extend([*_warnings(labels, run, made), *guards.doubts(selected.guarded, qualities)])
    scores = {name: labels.scores[name] for name in settings.score_columns} | run.scores(labels)
    routers = {name: Routing(values) for name, values in scores.items()}
    baselines = [RANDOM, *(name for name, one in run.scored.items() if one.router.card is None)]
    resamples = settings.resamples or default_resamples(len(labels.quality_small))
    total = 2 * resamples if len(labels.halves.of) else resamples  # the ceiling's are the second half
    with bars.rows("bootstrap", total, unit="resamples") as advance:
        evaluation = measure(
            labels,
            guards.routings(selected.guarded, settings.guards, routers, qualities),
            list(dict.fromkeys(baselines)),
            settings.budget,
            settings.severe,
            resamples,
            settings.seed,
            _signature(settings, selected, run, made),
            lambda: advance(1),
        )
    write(evaluation, out)
    return evaluation


def _make_folder(out: Path) -> None:
    """Create the output folder, before anything is computed. Raises OutputError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"--out {out}: the folder cannot be created ({reason}); give another") from None


@dataclass(frozen=True)
class Selected:
    """The routers, guards and metrics to run, by name, and where the guards' qualities come from."""

    routers: Mapping[str, RouterSpec]
    guarded: Sequence[Guarded]
    metrics: Mapping[str, Metric]
    qualities: Qualities


def _select(tables: Sequence[LabelTable], settings: Settings) -> Selected:
    """Raises UsageError or InputError if options and tables do not fit each other."""
    if not np.isfinite(settings.severe):
        raise UsageError(f"--severe {settings.severe}: give points of gain, such as {SEVERE_LOSS_GAIN:g}")
    routers = parse_routers(settings.routers, settings.seed, settings.dtype)
    clash = {*routers, *BUILT_IN} & set(settings.score_columns)
    if clash:
        raise UsageError(
            f"--scores {', '.join(sorted(clash))}: a router has that name ({', '.join(BUILT_IN)} are always "
            "in the table); rename the column"
        )
    names = [*routers, *settings.score_columns]
    taken = [*names, *BUILT_IN]
    guarded = guards.parse(settings.guards, names, taken)
    metrics = parse_metrics(settings.guards.metrics, taken, settings.guards.allow_pickle)
    qualities = find_qualities(guarded, routers, metrics, tables[0].schema.names)
    routes = {route for routes in qualities.measured.values() for route in routes}
    check_texts(tables, [f"translation_{route}" for route in sorted(routes)])
    return Selected(routers, guarded, metrics, qualities)


def _signature(settings: Settings, selected: Selected, run: Run, made: Sequence[Signature]) -> dict[str, Any]:
    return {
        "labels": [one.of_labels() for one in made],
        "routers": {name: one.router.describe() for name, one in run.scored.items()},
        "guards": {one.name: guards.describe(one, settings.guards) for one in selected.guarded},
        "metrics": {name: one.metric.signature() for name, one in run.measured.items()},
    }


@dataclass(frozen=True)
class Run:
    """The results of routers and metrics for every row of the tables, by name."""

    scored: Mapping[str, Scored]
    measured: Mapping[str, Measured]

    def scores(self, labels: Labels) -> dict[str, Floats]:
        """The routers' scores of the rows that are kept."""
        return {name: found.scores[labels.kept].astype(np.float64) for name, found in self.scored.items()}

    def qualities(self, labels: Labels, wanted: Qualities) -> dict[str, Floats]:
        """All qualities that guards name, of the rows that are kept."""
        scores = self.scores(labels)
        return {
            **{name: labels.scores[name] for name in wanted.columns},
            # A score is the predicted quality with its sign turned; see Router.scale.
            **{name: -scores[name] for name in wanted.predicted},
            **{
                measured_name(name, route): quality[labels.kept]
                for name, found in self.measured.items()
                for route, quality in found.quality.items()
            },
        }


def _run(
    tables: Sequence[str],
    selected: Selected,
    out: Path,
    made: Sequence[Signature],
    engine: Engine,
    bars: Bars,
) -> Run:
    # Metrics first: they find out whether the quality environment works before a router's model starts.
    measured = {
        name: measure_tables(tables, selected.metrics[name], routes, out / WORK / name, engine, bars, name)
        for name, routes in selected.qualities.measured.items()
    }
    small = {one.models.small.weights for one in made}
    weights = small.pop() if len(small) == 1 else None
    scored = {
        name: score_tables(tables, router, DiskLocation(out / WORK / name), weights, engine, bars, name)
        for name, router in selected.routers.items()
    }
    return Run(scored, measured)


def parse_routers(given: Iterable[str], seed: int, dtype: str) -> dict[str, RouterSpec]:
    """Parse `NAME=PATH` and `NAME` into routers by name. The kind is on the folder's card; without a card the
    name is the kind.

    Raises:
        UsageError: a name is taken or is no kind, or a kind that needs a path has none.
    """
    routers: dict[str, RouterSpec] = {}
    for text in given:
        name, _, source = text.partition("=")
        if not name or name in routers:
            raise UsageError(f"--router {text}: give NAME=PATH, each name once")
        if source and name in BUILT_IN:
            raise UsageError(
                f"--router {text}: the evaluation adds a router {name} itself; give another name"
            )
        if source and (path := expanded(Path(source))).exists():
            source = str(path.resolve())
        if source and raw_card(source):
            kind = read_card(source).kind
        elif name in KINDS:
            kind = name
        elif name in ORACLES:
            raise UsageError(f"--router {name}: always in the table; leave it out")
        else:
            if not source:
                folder = "give NAME=PATH, PATH a router folder"
            elif not locate(source).is_folder():
                folder = f"there is no such folder {source}"
            else:
                folder = f"{source} has no routelmt.json"
            raise UsageError(
                f"--router {text}: {folder}, and {name!r} is not a kind{near(name, KINDS)} (kinds: "
                f"{', '.join(KINDS)})"
            )
        if not source and (wanted := KINDS[kind]):
            raise UsageError(f"--router {name}: needs a path, {name}=PATH: {wanted.words}")
        routers[name] = router_spec(kind, source, seed, dtype)
    return routers


def _warnings(labels: Labels, run: Run, made: Sequence[Signature]) -> list[str]:
    """Warnings about how labels, routers and metrics fit each other."""
    found = []
    if not made and run.scored:
        found.append("the tables do not name their models: whether the routers fit them is not checked")
    if len(made) > 1:
        found.append(f"the tables hold labels of {len(made)} kinds (different models, prompts or metrics)")
    metrics = {one.metric.signature for one in made}
    small = {one.models.small.weights for one in made}
    found.extend(
        f"{name}: {measured.cut:,} translations are longer than it reads; it measured their beginning"
        for name, measured in run.measured.items()
        if measured.cut
    )
    for name, one in run.scored.items():
        router, card = one.router, one.router.card
        found.extend(f"{name}: {warning}" for warning in router.warnings)
        found.extend(router.doubts(name, labels.directions))
        if small and KINDS[router.pool.kind] is SMALL_MODEL:
            weights = checkpoints.weights_hash(router.pool.source)
            if weights not in small:
                found.append(
                    f"{name}: {router.pool.source} (weights {weights[:12]}) is not the small model that "
                    f"made the labels ({', '.join(sorted(known[:12] for known in small))})"
                )
        if card and metrics and card.metric.signature not in metrics:
            found.append(
                f"{name}: trained on {card.metric.signature}, evaluated on {', '.join(sorted(metrics))}"
            )
    return found
