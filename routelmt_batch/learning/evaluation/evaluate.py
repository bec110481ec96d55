"""Evaluate: routers against each other on rows whose gain is known.

Routers run as in a job; what the numbers are is evaluation's. All qualities and scores of the tables
are held at once (8 bytes a row each): a label table is no corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from routelmt_batch import checkpoints
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import UsageError
from routelmt_batch.job import OpenEngine
from routelmt_batch.kinds import KINDS, SEVERE_LOSS_GAIN, SMALL_MODEL
from routelmt_batch.learning.evaluation.evaluation import BUILT_IN, RANDOM, write
from routelmt_batch.learning.evaluation.evaluation import evaluate as measure
from routelmt_batch.learning.evaluation.tables import Labels, read_tables
from routelmt_batch.learning.labels import Signature, find, signatures
from routelmt_batch.learning.scoring import Scored, router_spec, score_tables
from routelmt_batch.progress import Bars
from routelmt_batch.resampling import default_resamples
from routelmt_batch.routers.card import raw_card, read_card
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.spec import near
from routelmt_batch.workspace import Folder


@dataclass(frozen=True)
class Settings:
    """What an evaluation is told beside its tables."""

    budget: Decimal
    routers: tuple[str, ...] = ()
    score_columns: tuple[str, ...] = ()
    severe: float = SEVERE_LOSS_GAIN
    resamples: int | None = None
    seed: int = 0
    dtype: str = "bfloat16"


def evaluate(
    tables: Sequence[str], settings: Settings, out: Path, bars: Bars, open_engine: OpenEngine
) -> dict[str, Any]:
    """Run the routers over label tables, measure them, write evaluation.json, .md, .png and .svg.

    Raises:
        UsageError: tables or routers that do not fit; nothing is started then.
    """
    routers = parse_routers(settings.routers, settings.seed, settings.dtype)
    clash = {*routers, *BUILT_IN} & set(settings.score_columns)
    if clash:
        raise UsageError(
            f"--scores {', '.join(sorted(clash))}: a router has that name ({', '.join(BUILT_IN)} are always "
            "in the table); rename the column"
        )
    labels = read_tables(tables, settings.score_columns)
    made = signatures(find(tables))
    scored: dict[str, Scored] = {}
    if routers:
        folder = Folder(out)
        folder.logs.mkdir(parents=True, exist_ok=True)
        with open_engine(folder) as engine:
            scored = _run(tables, routers, folder, made, engine, bars)
    labels.warnings.extend(_warnings(labels, scored, made))
    scores = dict(labels.scores)
    for name, found in scored.items():
        scores[name] = found.scores[labels.kept].astype(np.float64)
    baselines = [RANDOM, *(name for name, router in routers.items() if not KINDS[router.kind].learned)]
    resamples = settings.resamples or default_resamples(len(labels.quality_small))
    with bars.rows("bootstrap", resamples, unit="resamples") as advance:
        evaluation = measure(
            labels,
            scores,
            list(dict.fromkeys(baselines)),
            settings.budget,
            settings.severe,
            resamples,
            settings.seed,
            {
                "labels": [one.of_labels() for one in made],
                "routers": {name: found.router.describe() for name, found in scored.items()},
            },
            lambda: advance(1),
        )
    write(evaluation, out)
    return evaluation


def _run(
    tables: Sequence[str],
    routers: Mapping[str, RouterSpec],
    folder: Folder,
    made: Sequence[Signature],
    engine: Engine,
    bars: Bars,
) -> dict[str, Scored]:
    small = {one.models.small.weights for one in made}
    weights = small.pop() if len(small) == 1 else None
    return {
        name: score_tables(tables, router, folder.work / name, weights, engine, bars, name)
        for name, router in routers.items()
    }


def parse_routers(given: Iterable[str], seed: int, dtype: str) -> dict[str, RouterSpec]:
    """`NAME=PATH` and `NAME` as routers by name. A folder with a card says what it is; without one the
    name is the kind.

    Raises:
        UsageError: a name that is taken or says nothing, a kind that needs a path and has none.
    """
    routers: dict[str, RouterSpec] = {}
    for text in given:
        name, _, source = text.partition("=")
        if not name or name in routers:
            raise UsageError(f"--router {text}: give NAME=PATH, each name once")
        if source and name in BUILT_IN:
            raise UsageError(f"--router {text}: {name} is the evaluation's own; give it another name")
        if source and Path(source).expanduser().exists():
            source = str(Path(source).expanduser().resolve())
        if source and raw_card(source):
            kind = read_card(source).kind
        elif name in KINDS and not KINDS[name].needs_reference:
            kind = name
        elif name in KINDS:
            raise UsageError(f"--router {name}: always in the table; leave it out")
        else:
            known = [kind for kind, value in KINDS.items() if not value.needs_reference]
            raise UsageError(
                f"--router {text}: {source or 'no path'} has no routelmt.json, and {name!r} is no kind"
                f"{near(name, known)} (kinds: {', '.join(known)})"
            )
        if not source and KINDS[kind].source:
            raise UsageError(f"--router {name}: needs a path, {name}=PATH: {KINDS[kind].source}")
        routers[name] = router_spec(kind, source, seed, dtype)
    return routers


def _warnings(labels: Labels, scored: Mapping[str, Scored], made: Sequence[Signature]) -> list[str]:
    """What keeps a number from meaning what it seems to."""
    found = []
    if not made and scored:
        found.append("the tables do not say which models they are of: a router's fit to them is not checked")
    if len(made) > 1:
        found.append(f"the tables hold labels of {len(made)} kinds (other models, prompts or metrics)")
    metrics = {one.metric.signature for one in made}
    small = {one.models.small.weights for one in made}
    for name, one in scored.items():
        router, card = one.router, one.router.card
        found.extend(f"{name}: {warning}" for warning in router.warnings)
        found.extend(router.doubts(name, labels.directions))
        if small and router.kind.source == SMALL_MODEL:
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
