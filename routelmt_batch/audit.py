"""What a job's report says of its router: the audit's figures, drift, and advice."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.learning.audited import Audited, Drift, advice, drift, summarise
from routelmt_batch.ledger import AUDIT, AUDIT_QUALITY, AUDIT_TRANSLATIONS
from routelmt_batch.rows import LARGE, SMALL
from routelmt_batch.stages.allocate import Plan, gains
from routelmt_batch.stages.recipe import Job


def audited(workspace: Job, plan: Plan) -> dict[str, Any]:
    """`audit` (None without one), `drift` (None without a calibrated router) and `advice`."""
    found = _audit(workspace, plan)
    moved = _drift(workspace)
    return {
        "audit": found,
        "drift": vars(moved) if moved else None,
        "advice": advice(found, moved),
    }


def _audit(workspace: Job, plan: Plan) -> dict[str, Any] | None:
    ledger = workspace.ledger
    event = next(ledger.events_of("audit"), None)
    if event is None:
        return None
    rows = plan.rows_with_gain
    fraction = plan.fraction if plan.at_least is None else Decimal(plan.large) / max(rows, 1)
    return {
        "sampled": event["rows"],
        "strata": event["strata"],
        "fraction": str(fraction),
        # Beside the budget: what the audit itself had translated.
        "calls": {route: ledger.count(AUDIT_TRANSLATIONS, route) for route in (SMALL, LARGE)},
        **summarise(_rows(workspace), fraction, workspace.spec.audit.seed),
    }


def _rows(workspace: Job) -> Audited:
    """The sample's rows with both qualities, in row order."""
    sample, quality = (_read(workspace, stage) for stage in (AUDIT, AUDIT_QUALITY))
    keys = ["shard", "row"]
    joined = sample
    for route in (SMALL, LARGE):
        mine = quality.filter(pa.compute.field("route") == route).select([*keys, "quality"])
        joined = joined.join(mine.rename_columns([*keys, route]), keys, join_type="inner")
    joined = joined.filter(pa.compute.field(SMALL).is_valid() & pa.compute.field(LARGE).is_valid())
    joined = joined.sort_by([(key, "ascending") for key in keys])
    small, large = (joined[route].to_numpy() for route in (SMALL, LARGE))
    return Audited(
        joined["gain"].to_numpy().astype(np.float64),
        large - small,
        joined["source_tokens"].to_numpy().astype(np.float64),
        joined["direction"].to_numpy(zero_copy_only=False),
    )


def _read(workspace: Job, stage: str) -> pa.Table:
    """A stage's committed rows: of the audit, so that they are few."""
    ledger = workspace.ledger
    tables = [pq.read_table(ledger.part_path(entry)) for entry in ledger.parts[stage]]
    return pa.concat_tables(tables)


def _drift(workspace: Job) -> Drift | None:
    """The job's scores against those of the router's calibration, in one read."""
    card = workspace.recipe.router.card
    if not (card and card.calibration):
        return None
    quantiles = np.array(card.calibration.quantiles)
    below, rows = np.zeros(len(quantiles), np.int64), 0
    for part in gains(workspace):
        scores = np.sort(part.gain[~np.isnan(part.gain)])
        below += np.searchsorted(scores, quantiles, side="right")
        rows += len(scores)
    return drift(below, rows, quantiles) if rows else None
