"""A finished job as tables: rows with budget, guard and audit, then routes, directions, passes."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from routelmt_batch.cli.show.parts import counts, extent, interval, new_table, number
from routelmt_batch.corpus.codes import in_words
from routelmt_batch.job.conditions import triggered
from routelmt_batch.names import one_line
from routelmt_batch.progress import counted
from routelmt_batch.rows import LARGE, SMALL
from routelmt_batch.stages.job_report import AuditReport, CodesReport, DriftReport, GuardReport, JobReport


def job(report: JobReport) -> Group:
    """The job as compact tables: rows with budget, guard and audit, then routes, directions, passes."""
    return Group(_summary(report), _routes(report), _directions(report), _passes(report))


def _summary(report: JobReport) -> Table:
    gain = report.gain
    rows = new_table(report.name, "")
    rows.add_row("rows", extent(report.rows, report.shards))
    if report.folded_rows:
        rows.add_row("folded", f"{report.folded_rows:,} rows have the output of another row's call")
    rows.add_row("calls", counts(report.calls))
    if any(report.saved_calls.values()):
        rows.add_row("saved calls", counts(report.saved_calls))
    for job in report.reuse:
        rows.add_row("reused", f"{counts(job.taken) or 'nothing'} of {job.output}")
        for kind, changed in job.changed.items():
            rows.add_row(
                "not reused",
                f"{changed.calls:,} {kind} of {job.output}: changed {', '.join(changed.because)}",
            )
    rows.add_row("status", counts(report.status))
    rows.add_row("reasons", counts(report.reason) or "none")
    rows.add_row("doubtful", counts(report.checks) or "none")
    for name, text in _codes(report.codes).items():
        rows.add_row(name, text)
    for name, text in _budget(report).items():
        rows.add_row(name, text)
    rows.add_row(
        "predicted gain",
        f"{report.predicted_gain_bought:,.1f} bought; mean {number(gain.all.mean)} of all, "
        f"{number(gain.routed.mean)} of routed rows",
    )
    for name, text in (_guard(report.guard) | _audit(report.audit) | _drift(report.drift)).items():
        rows.add_row(name, text)
    for advice in report.advice:
        rows.add_row("advice", advice)
    for condition in triggered(report.fail_if or ()):
        rows.add_row("fail if", condition)
    for name, reason in report.unreadable.items():
        rows.add_row("unreadable", f"{one_line(name)}: {reason}")
    for warning in report.warnings:
        rows.add_row("warning", warning)
    return rows


def _codes(codes: CodesReport) -> dict[str, str]:
    """Language codes that are not LMT's, if there are any."""
    found = {}
    if codes.spelled:
        found["codes"] = "; ".join(f"{known}: {counts(ways)}" for known, ways in codes.spelled.items())
    if codes.unknown:
        found["unknown codes"] = in_words(codes.unknown)
    return found


def _routes(report: JobReport) -> Table:
    routes = new_table("model", "planned", "translated", "tokens in", "tokens out")
    for route in (SMALL, LARGE):
        tokens = report.tokens.get(route, {"in": 0, "out": 0})
        routes.add_row(
            route,
            f"{report.planned_route.get(route, 0):,}",
            f"{report.route.get(route, 0):,}",
            f"{tokens['in']:,}",
            f"{tokens['out']:,}",
        )
    return routes


def _directions(report: JobReport) -> Table:
    directions = new_table("direction", "rows", "to large", "ok", "not ok")
    for name, part in report.direction.items():
        rows, ok = part["rows"], part.get("ok", 0)
        directions.add_row(name, f"{rows:,}", f"{part['large']:,}", f"{ok:,}", f"{rows - ok:,}")
    return directions


def _passes(report: JobReport) -> Table:
    passes = new_table("pass", "rows", "seconds", "engine start", "rows/s after start")
    for line in report.passes:
        ahead = line.started_ahead_seconds
        passes.add_row(
            line.name,
            f"{line.rows:,}",
            f"{line.seconds:.1f}",
            f"{line.engine_start_seconds:.1f}" + (f" ({ahead:.1f} ahead)" if ahead else ""),
            f"{line.rows_per_second:,.0f}",
        )
    return passes


def _guard(guard: GuardReport | None) -> dict[str, str]:
    """What the guard changed about calls to the large model, and what that cost."""
    if guard is None:
        return {}
    found = {}
    if guard.mode != "off":
        found["guard"] = (
            f"{guard.mode}, above {guard.keep_small_above:g}: {guard.kept_small:,} planned rows "
            f"kept small, {guard.freed_places_taken:,} freed places taken, {guard.unfilled:,} unfilled"
        )
    if guard.held_back:
        found["escalated"] = f"{guard.escalated:,} of {guard.held_back:,} places held back"
    if guard.verify:
        found["verified"] = f"{guard.verified_small:,} rows keep the small model's text"
    measured = counts({f"of {name}": count for name, count in guard.measured.items()})
    unknown = sum(guard.unknown.values())
    found["guard's cost"] = (
        f"{guard.extra_small_translations:,} extra small translations; measured: {measured or 'none'}"
        + (f"; {unknown:,} without a quality" if unknown else "")
    )
    return found


def _audit(audit: AuditReport | None) -> dict[str, str]:
    """Predicted and realised gain on the sample; only its size if it has too few rows."""
    if audit is None:
        return {}
    calls = audit.calls
    found = {
        "audit": f"{counted(audit.sampled, 'row')}, {audit.rows:,} measured; {calls[LARGE]:,} large "
        f"and {calls[SMALL]:,} small calls outside the budget"
    }
    if audit.spearman and audit.mean_delta and audit.severe_loss_rate:
        found["audited gain"] = (
            f"mean {number(audit.predicted)} predicted, {number(audit.realised)} realised; "
            f"Spearman {interval(vars(audit.spearman))}"
        )
        found[f"MeanDelta@{float(audit.fraction):.3g}"] = "; ".join(
            f"{name} {interval(vars(value))}" for name, value in audit.mean_delta.items()
        )
        found["severe losses"] = f"{interval(vars(audit.severe_loss_rate))}% of the sample's routed rows"
    return found


def _drift(drift: DriftReport | None) -> dict[str, str]:
    if drift is None:
        return {}
    return {"drift": f"PSI {drift.psi:.3f}, KS {drift.ks:.3f} from the router's calibration"}


def _budget(report: JobReport) -> dict[str, str]:
    """The budget's rule and its result: a fraction's places, or the rows that reach a threshold."""
    budget = report.budget
    with_gain = f"{budget.calls_with_gain:,} {'calls' if report.folded_rows else 'rows'} with a gain"
    usage = f"{budget.planned:,} planned, {budget.used:,} used"
    # Places held back for escalation belong to the budget but not to the plan.
    held_back = report.guard.held_back if report.guard else 0
    places = f"{budget.places + held_back:,} places"
    if held_back:
        places += f" ({held_back:,} for escalation)"
    if budget.unit != "calls":
        found = {
            "budget": f"{budget.amount or f'{budget.fraction} of what all rows cost'}: "
            f"{budget.spent or 0:,.6g} of {budget.budgeted or 0:,.6g} {budget.unit} expected, {usage}"
        }
        if budget.gain_per_cost is not None:
            found["threshold"] = f"{budget.gain_per_cost:.4g} predicted gain for 1 of {budget.unit}"
        fits = (budget.expected_output or {}).items()
        known = [f"{name} {line.error:.0%} (R2 {number(line.r2)})" for name, line in fits if line.error]
        return found | ({"error of output lengths": ", ".join(known)} if known else {})
    if budget.threshold is None:
        return {
            "budget": f"{budget.amount or budget.fraction} of {with_gain}: {places}, {usage}",
            "threshold": f"{number(report.threshold)} predicted gain",
        }
    found = {"threshold": f"{budget.threshold:g}: {budget.reached:,} of {with_gain} reach it"}
    if budget.realised is not None:
        found["threshold"] += f", {budget.reached_fraction:.4f}"
        usage += f"; {budget.realised:.4f} of those with a gain"
    if expected := budget.calibrated:
        found["calibrated"] = (
            f"for {budget.fraction} on {expected.rows:,} held-out rows: {expected.low:.4f} to "
            f"{expected.high:.4f} (95%) of rows like them"
        )
    if budget.cap is not None:
        found["cap"] = f"{budget.cap}: {places}"
    return found | {"to large": usage}
