"""Report: describes the job in one JSON file, and verifies its outputs again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from routelmt_batch.corpus.codes import MOST_CODES, OTHER
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.metrics.metric import describe
from routelmt_batch.routers.router import Router
from routelmt_batch.rows import (
    ESCALATE,
    LARGE,
    PREDICTED,
    QUALITY,
    ROUTE,
    SCORES,
    SKIP_REASONS,
    SMALL,
    STATUSES,
    TRANSLATIONS,
)
from routelmt_batch.spec import Guard, Pool
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.audited import audited
from routelmt_batch.stages.earlier import KINDS, SCORE
from routelmt_batch.stages.job_report import JobReport
from routelmt_batch.stages.outputs import write_report
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.tally import EDGES, fractions, summable
from routelmt_batch.stages.totals import totals
from routelmt_batch.store import checkpoints
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.manifest import versions


def report(workspace: Job, plan: Plan, engine: Engine) -> JobReport:
    """Re-verify every output shard and write `reports/job.json`.

    Raises:
        RoutelmtError: see write_report.
    """
    made = job_report(workspace, plan, engine)
    write_report(workspace, made, engine)
    return made


def job_report(workspace: Job, plan: Plan, engine: Engine) -> JobReport:
    spec = workspace.spec
    total = totals(workspace, engine, summable)
    counts = {name: total.get(name, {}) for name in ("status", "reason", "planned_route", "route")}
    counts["status"] = {status: counts["status"].get(status, 0) for status in STATUSES}
    jobs = [job for event in workspace.ledger.events_of("reuse") for job in event["jobs"]]
    taken = {kind: sum(job["taken"][kind] for job in jobs) for kind in KINDS}
    used, with_gain = total.get("used_calls", {}), total.get("rows_with_gain", 0)
    passes, budget = _passes(workspace), _budget(plan, with_gain, used.get(LARGE, 0))
    guard, judged = _guard(workspace, plan, used), audited(workspace, plan)
    directions = total.get("direction", {})
    return JobReport.of(
        {
            "name": spec.name,
            "rows": total.get("rows", 0),
            "shards": len(workspace.shards),
            "unreadable": workspace.unreadable,
            "calls": _calls(workspace.ledger, taken),
            "reused_rows": taken,
            "saved_calls": {
                SCORE: workspace.folded_rows + taken[SCORE],
                **{m: counts["route"].get(m, 0) - used.get(m, 0) + taken[m] for m in (SMALL, LARGE)},
            },
            "reuse": jobs,
            "folded_rows": workspace.folded_rows,
            "used_calls": used,
            **counts,
            "checks": total.get("checks", {}),
            "direction": directions,
            "codes": _codes(total.get("codes", {})),
            "budget": budget,
            "guard": guard,
            "threshold": plan.threshold,
            "fraction": fractions(counts, with_gain),
            "predicted_gain_planned": plan.predicted_gain,
            "predicted_gain_bought": total.get("predicted_gain_bought", 0.0),
            "budgets": [line.as_json() for line in plan.budgets],
            "gain": _distributions(plan, total.get("gain", {})),
            "tokens": total.get("tokens", {}),
            "lengths": total.get("lengths", {}),
            "passes": passes,
            "seconds": math.fsum(line["seconds"] for line in passes),
            "models": {
                "small": _model(spec.models.small),
                "large": _model(spec.models.large),
                "router": _router(workspace.recipe.router),
            },
            "fingerprints": workspace.fingerprints,
            "versions": versions(),
            **judged,
            "warnings": _warnings(workspace, plan, directions, budget, guard, judged["audit"]),
        }
    )


def _calls(ledger: Ledger, taken: Mapping[str, int]) -> dict[str, int]:
    """Rows that were sent to the router and to each model, without those whose work was `taken` from an
    earlier job. A row that is sent twice counts twice."""
    scored = ledger.totals(SCORES)
    skipped = sum(scored.unanswered[reason] for reason in SKIP_REASONS)
    made = {SCORE: scored.rows - skipped} | {
        model: ledger.rows(TRANSLATIONS, model) for model in (SMALL, LARGE)
    }
    return {kind: rows - taken[kind] for kind, rows in made.items()}


def _codes(total: Mapping[str, Any]) -> dict[str, Any]:
    """Codes of all shards; of the unknown ones the hundred most frequent, and the others together."""
    unknown = Counter(total.get("unknown", {}))
    most = dict(unknown.most_common(MOST_CODES))
    if left := unknown.total() - sum(most.values()):
        most[OTHER] = most.get(OTHER, 0) + left
    return {"spelled": total.get("spelled", {}), "unknown": most}


def _guard(workspace: Job, plan: Plan, used: Mapping[str, int]) -> dict[str, Any] | None:
    """What the guard did and what it cost; None if the job has no guard. `used` counts calls by model."""
    guard, ledger = workspace.spec.guard, workspace.ledger
    if guard == Guard():
        return None
    steps = {event["step"]: event for event in ledger.events_of("guard")}
    route, escalation = steps.get(ROUTE, {}), steps.get(ESCALATE, {})
    unused = {
        model: ledger.totals(TRANSLATIONS, model).answered - used.get(model, 0) for model in (SMALL, LARGE)
    }
    return {
        **guard.model_dump(mode="json", exclude={"router"}),
        "metric": describe(workspace.recipe.metric) if workspace.recipe.metric else None,
        "calls": {LARGE: plan.large + sum(e["to_large"] - e["to_small"] for e in steps.values())},
        "kept_small": route.get("to_small", 0),
        "freed_places_taken": route.get("to_large", 0),
        "unfilled": route.get("unfilled", 0),
        "held_back": plan.held_back,
        "escalated": escalation.get("to_large", 0),
        "held_back_unfilled": escalation.get("unfilled", 0),
        "verified_small": unused[LARGE],
        # The cost: small translations that are not in the output, and what was measured.
        "extra_small_translations": unused[SMALL],
        "measured": {of: ledger.rows(QUALITY, of) for of in (SMALL, LARGE, PREDICTED)},
        # Measured rows without a quality: the metric gave none, or the row has no reference.
        "unknown": {of: ledger.totals(QUALITY, of).unanswered.total() for of in (SMALL, LARGE, PREDICTED)},
        # Measured rows that are longer than the metric reads: only their beginning was measured.
        "cut": {route: ledger.totals(QUALITY, route).sums["cut"] for route in (SMALL, LARGE)},
    }


def _budget(plan: Plan, with_gain: int, used: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "fraction": None if plan.fraction is None else str(plan.fraction),
        "min_gain": plan.min_gain,
        "threshold": plan.at_least,
        "cap": None if plan.cap is None else str(plan.cap),
        "rows_with_gain": with_gain,
        "calls_with_gain": plan.calls_with_gain,
        "places": plan.places,
        "planned": plan.large,
        "used": used,
    }
    if plan.amount is not None:
        figures["amount"] = plan.amount
    if plan.shares:
        figures["directions"] = {name: share.model_dump(mode="json") for name, share in plan.shares.items()}
    if spending := plan.spending:
        figures |= {
            "unit": spending.unit,
            "min_gain_per_cost": plan.min_gain_per_cost,
            "gain_per_cost": plan.gain_per_cost,
            "budgeted": plan.budgeted,
            "spent": plan.spent,
            "expected_output": {**spending.costs.lines, "other": spending.costs.others},
        }
    if plan.at_least is None:
        return figures | {"unfilled": plan.places - plan.large}
    rows = plan.calls_with_gain
    figures |= {
        "reached": plan.reached,
        "reached_fraction": plan.reached / rows if rows else None,
        "realised": plan.large / rows if rows else None,
        "calibrated": None,
    }
    if plan.held_out and rows:
        low, high = plan.held_out.interval(rows)
        figures["calibrated"] = {**asdict(plan.held_out), "low": low, "high": high}
    return figures


def _passes(workspace: Job) -> list[dict[str, Any]]:
    """Times of each pass, with the engine's start apart; a resumed pass has one line for each run."""
    return [
        {
            "name": event["name"],
            "rows": event["rows"],
            "seconds": event["seconds"],
            "engine_start_seconds": event["engine_start_seconds"],
            "started_ahead_seconds": event["started_ahead_seconds"],
            "rows_per_second": round(
                event["rows"] / max(event["seconds"] - event["engine_start_seconds"], 1e-3), 1
            ),
            "lanes": event["lanes"],
            "gpus": event["gpus"],
        }
        for event in workspace.ledger.events_of("pass")
    ]


def _distributions(plan: Plan, summed: dict[str, Any]) -> dict[str, Any]:
    """Histograms summed from the shards, and the plan's exact deciles."""
    distributions = {}
    for name, deciles in plan.deciles.items():
        part = summed.get(name, {"rows": 0, "infinite": 0, "sum": 0.0, min: None, max: None, "counts": {}})
        finite = part["rows"] - part["infinite"]
        counts = [part["counts"].get(index, 0) for index in range(len(EDGES) + 1)]
        distributions[name] = {
            "rows": part["rows"],
            "infinite": part["infinite"],
            "mean": part["sum"] / finite if finite else None,
            "min": part[min],
            "max": part[max],
            "deciles": deciles,
            "histogram": {"edges": EDGES.tolist(), "counts": counts},
        }
    return distributions


def _model(pool: Pool) -> dict[str, str]:
    return {
        "source": pool.source,
        "weights": checkpoints.weights_hash(pool.source),
        "dtype": pool.dtype,
    }


def _router(router: Router) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": router.pool.kind, "source": router.pool.source}
    if router.card:
        described |= _model(router.pool) | {"metric": router.card.metric.model_dump()}
    return described


def _warnings(
    workspace: Job,
    plan: Plan,
    directions: Mapping[str, Any],
    budget: Mapping[str, Any],
    guard: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
) -> list[str]:
    """What an auditor should know: directions that the router was not trained on, checks that could not be
    made, rows that could not be measured, a threshold that does not fit the rows, a cap that was reached."""
    router = workspace.recipe.router
    lines = [*router.warnings, *router.doubts("router", directions)]
    if not router.predicts_gain:
        lines.append(
            f"scores of router kind {router.pool.kind} are not gains: only their order is meaningful"
        )
    return [*lines, *_unmeasured(guard, audit), *_of_threshold(plan, budget, workspace.folded_rows)]


def _unmeasured(guard: Mapping[str, Any] | None, audit: Mapping[str, Any] | None) -> Iterator[str]:
    why = "no reference, or the metric failed on them"
    if guard and (unknown := sum(guard["unknown"].values())):
        yield (
            f"{unknown:,} of {sum(guard['measured'].values()):,} translations that the guard measured have "
            f"no quality ({why}): the guard leaves such rows as planned"
        )
    if audit and (unknown := audit["sampled"] - audit["rows"]):
        yield f"{unknown:,} of {audit['sampled']:,} rows of the audit could not be measured ({why})"


def _of_threshold(plan: Plan, budget: Mapping[str, Any], folded_rows: int) -> list[str]:
    lines: list[str] = []
    if budget["threshold"] is None:
        return lines
    expected, reached = budget["calibrated"], budget["reached_fraction"]
    # The held-out rows were single ones: nothing follows for calls that are worth a multiple of their score.
    if expected and not folded_rows and not expected["low"] <= reached <= expected["high"]:
        lines.append(
            f"a fraction of {reached:.4f} of the rows reaches the threshold calibrated for "
            f"{budget['fraction']}, outside the expected {expected['low']:.4f} to {expected['high']:.4f} "
            "(95%): these rows are not like the held-out rows; calibrate the router on rows like these"
        )
    if over_cap := budget["reached"] - budget["planned"]:
        kept = f" ({plan.held_back:,} of them kept for escalation)" if plan.held_back else ""
        lines.append(
            f"the cap of {budget['places'] + plan.held_back:,} rows{kept} was reached; {over_cap:,} rows "
            "over the threshold went to small"
        )
    return lines
