"""Reports as tables on a terminal. It formats; it computes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from routelmt_batch.clean import Cleaned
from routelmt_batch.conditions import held
from routelmt_batch.doctor import Finding
from routelmt_batch.progress import counted
from routelmt_batch.rates import Estimate
from routelmt_batch.routers.card import Calibration
from routelmt_batch.rows import LARGE, SMALL
from routelmt_batch.stages.allocate import WhatIf


def cleaned(found: Cleaned, would: bool) -> RenderableType:
    """What was cleaned away, or would be."""
    if not found.removed:
        return "nothing to clean"
    table = _table("work files of", "files", "size")
    for stage in found.removed:
        table.add_row(stage.stage, f"{stage.files:,}", decimal(stage.bytes))
    freed = decimal(found.freed_bytes)
    if would:
        return Group(table, f"at most {freed} would be freed")
    kept = f", kept {decimal(found.kept_bytes)} of translations" if found.kept_bytes else ""
    return Group(table, f"freed {freed}{kept}")


def what_if(lines: Sequence[WhatIf], estimates: Sequence[Estimate] = ()) -> Table:
    """What each budget buys; with estimates, in how many hours and for how much."""
    names = ("budget", "rows to large", "prompt tokens", "predicted gain", "gain/row", "threshold")
    table = _table(*names, *(("hours", "cost") if estimates else ()))
    for line, estimate in itertools.zip_longest(lines, estimates):
        table.add_row(
            f"{line.fraction:.2f}",
            f"{line.rows:,}",
            f"{line.prompt_tokens:,}",
            f"{line.predicted_gain:,.1f}",
            _number(line.predicted_gain / line.rows if line.rows else None),
            _number(line.threshold),
            *((_number(estimate.hours), _number(estimate.cost)) if estimate else ()),
        )
    return table


def job(report: Mapping[str, Any]) -> Group:
    """The job as compact tables: rows with budget, guard and audit, then routes, directions, passes."""
    return Group(_summary(report), _routes(report), _directions(report), _passes(report))


def _summary(report: Mapping[str, Any]) -> Table:
    gain = report["gain"]
    rows = _table(report["name"], "")
    rows.add_row("rows", _extent(report))
    rows.add_row("status", _counts(report["status"]))
    rows.add_row("reasons", _counts(report["reason"]) or "none")
    rows.add_row("doubtful", _counts(report["checks"]) or "none")
    for name, told in _budget(report).items():
        rows.add_row(name, told)
    rows.add_row(
        "predicted gain",
        f"{report['predicted_gain_bought']:,.1f} bought; mean {_number(gain['all']['mean'])} of all, "
        f"{_number(gain['routed']['mean'])} of routed rows",
    )
    for name, told in (_guard(report["guard"]) | _audit(report["audit"]) | _drift(report["drift"])).items():
        rows.add_row(name, told)
    for advice in report["advice"]:
        rows.add_row("advice", advice)
    for told in held(report):
        rows.add_row("fail if", told)
    for name, reason in report["unreadable"].items():
        rows.add_row("unreadable", f"{name}: {reason}")
    for warning in report["warnings"]:
        rows.add_row("warning", warning)
    return rows


def _routes(report: Mapping[str, Any]) -> Table:
    routes = _table("model", "planned", "translated", "tokens in", "tokens out")
    for route in (SMALL, LARGE):
        tokens = report["tokens"].get(route, {"in": 0, "out": 0})
        routes.add_row(
            route,
            f"{report['planned_route'].get(route, 0):,}",
            f"{report['route'].get(route, 0):,}",
            f"{tokens['in']:,}",
            f"{tokens['out']:,}",
        )
    return routes


def _directions(report: Mapping[str, Any]) -> Table:
    directions = _table("direction", "rows", "to large", "ok", "not ok")
    for name, counts in report["direction"].items():
        ok = counts.get("ok", 0)
        directions.add_row(
            name, f"{counts['rows']:,}", f"{counts['large']:,}", f"{ok:,}", f"{counts['rows'] - ok:,}"
        )
    return directions


def _passes(report: Mapping[str, Any]) -> Table:
    passes = _table("pass", "rows", "seconds", "engine start", "rows/s after start")
    for line in report["passes"]:
        passes.add_row(
            line["name"],
            f"{line['rows']:,}",
            f"{line['seconds']:.1f}",
            f"{line['engine_start_seconds']:.1f}",
            f"{line['rows_per_second']:,.0f}",
        )
    return passes


def _guard(guard: Mapping[str, Any] | None) -> dict[str, str]:
    """What the guard did with calls to the large model, and what that cost."""
    if guard is None:
        return {}
    found = {}
    if guard["mode"] != "off":
        found["guard"] = (
            f"{guard['mode']}, above {guard['keep_small_above']:g}: {guard['kept_small']:,} planned rows "
            f"kept small, {guard['freed_places_taken']:,} freed places taken, {guard['unfilled']:,} unfilled"
        )
    if guard["held_back"]:
        found["escalated"] = f"{guard['escalated']:,} of {guard['held_back']:,} places held back"
    if guard["verify"]:
        found["verified"] = f"{guard['verified_small']:,} rows, the small model's text stands"
    measured = _counts({f"of {name}": count for name, count in guard["measured"].items()})
    unknown = sum(guard["unknown"].values())
    found["guard's cost"] = (
        f"{guard['extra_small_translations']:,} extra small translations; measured: {measured or 'none'}"
        + (f"; {unknown:,} without a quality" if unknown else "")
    )
    return found


def _audit(audit: Mapping[str, Any] | None) -> dict[str, str]:
    """Predicted against realised gain on the sample; without enough rows of it, only its size."""
    if audit is None:
        return {}
    calls = audit["calls"]
    found = {
        "audit": f"{counted(audit['sampled'], 'row')}, {audit['rows']:,} measured; {calls[LARGE]:,} large "
        f"and {calls[SMALL]:,} small calls beside the budget"
    }
    if "realised" in audit:
        found["audited gain"] = (
            f"mean {_number(audit['predicted'])} predicted, {_number(audit['realised'])} realised; "
            f"Spearman {_interval(audit['spearman'])}"
        )
        found[f"MeanDelta@{float(audit['fraction']):.3g}"] = "; ".join(
            f"{name} {_interval(value)}" for name, value in audit["mean_delta"].items()
        )
        found["severe losses"] = f"{_interval(audit['severe_loss_rate'])}% of the sample's routed rows"
    return found


def _drift(drift: Mapping[str, Any] | None) -> dict[str, str]:
    if drift is None:
        return {}
    return {"drift": f"PSI {drift['psi']:.3f}, KS {drift['ks']:.3f} from the router's calibration"}


def _budget(report: Mapping[str, Any]) -> dict[str, str]:
    """The budget's rule and what came of it: a fraction's places, or what reached a threshold."""
    budget = report["budget"]
    with_gain, went = f"{budget['rows_with_gain']:,} rows with a gain", f"{budget['planned']:,} planned, "
    went += f"{budget['used']:,} used"
    # Places that are held back for escalation are of the budget, and not of the plan.
    held_back = (report["guard"] or {}).get("held_back", 0)
    places = f"{budget['places'] + held_back:,} places"
    if held_back:
        places += f" ({held_back:,} for escalation)"
    if budget.get("threshold") is None:
        return {
            "budget": f"{budget['fraction']} of {with_gain}: {places}, {went}",
            "threshold": f"{_number(report['threshold'])} predicted gain",
        }
    found = {"threshold": f"{budget['threshold']:g}: {budget['reached']:,} of {with_gain} reach it"}
    if budget["realised"] is not None:
        # A report of an earlier version calls that which reached it realised.
        found["threshold"] += f", {budget.get('reached_fraction', budget['realised']):.4f}"
        if "reached_fraction" in budget:
            went += f"; {budget['realised']:.4f} of rows with a gain"
    if expected := budget["calibrated"]:
        found["calibrated"] = (
            f"for {budget['fraction']} on {expected['rows']:,} held-out rows: {expected['low']:.4f} to "
            f"{expected['high']:.4f} (95%) of rows like them"
        )
    if budget["cap"] is not None:
        found["cap"] = f"{budget['cap']}: {places}"
    return found | {"to large": went}


def comparison(compared: Mapping[str, Any]) -> Group:
    """Two jobs side by side: figures, directions, score drift, rows routed differently."""
    figures = _table("", *compared["names"])
    for name, pair in compared["figures"].items():
        digits = 4 if "share" in name else 2 if isinstance(pair[0], float) else 0
        figures.add_row(name, *("-" if value is None else f"{value:,.{digits}f}" for value in pair))
    for group in ("status", "reason"):
        for name, pair in compared[group].items():
            figures.add_row(f"{group} {name}", *(f"{count:,}" for count in pair))
    for name, pair in compared["direction"].items():
        figures.add_row(f"{name} to large", *("-" if share is None else f"{share:.4f}" for share in pair))
    told = _table("compared", "")
    if drift := compared["drift"]:
        told.add_row(
            "score drift",
            f"population stability index {drift['psi']:.3f}, Kolmogorov-Smirnov distance {drift['ks']:.3f}",
        )
    routed = compared["routed"]
    ways = f": {_counts(routed['ways'])}" if routed["ways"] else ""
    told.add_row("routed differently", f"{routed['different']:,} of {routed['common']:,} rows of both{ways}")
    for name, (ours, theirs) in compared["settings"].items():
        told.add_row("differs", f"{name}: {ours}, was {theirs}")
    return Group(figures, told)


def labels(report: Mapping[str, Any]) -> Group:
    """A label job: how many rows have a gain, why others have none, means by direction."""
    rows = _table(report["name"], "")
    rows.add_row("rows", f"{_extent(report)}, {report['labelled']:,} labelled")
    rows.add_row("unlabelled", _counts(report["unlabelled"]) or "none")
    rows.add_row("metric", report["signature"]["metric"]["signature"])
    cut = report.get("cut", {})  # reports of before COMET have none
    if any(cut.values()):
        told = "; ".join(f"{count:,} of {name}" for name, count in cut.items())
        rows.add_row("cut", f"longer than the metric reads, measured by their beginning: {told}")
    for name, reason in report["unreadable"].items():
        rows.add_row("unreadable", f"{name}: {reason}")
    means = _table("direction", "labelled", "small", "large", "gain", "st. dev.")
    for name, part in [*report["direction"].items(), ("all", report["overall"])]:
        values = (
            part.get(key) for key in ("quality_small", "quality_large", "gain", "gain_standard_deviation")
        )
        means.add_row(name, f"{part['labelled']:,}", *map(_number, values))
    return Group(rows, means)


def training(report: Mapping[str, Any]) -> Table:
    """A trained router on its held-out rows, and whether its training stopped early."""
    table = _table("held out", "rows", "R2", "MAE", "Pearson", "Spearman", "calibration error")
    held_out = report["held_out"]
    for name, part in [("overall", held_out["overall"]), *held_out["directions"].items()]:
        values = (part[key] for key in ("r2", "mae", "pearson", "spearman", "expected_calibration_error"))
        table.add_row(
            name, f"{part['rows']:,}", *("-" if v is None or v != v else f"{v:.3f}" for v in values)
        )
    trained = report["trained"]
    if trained["stopped_early"]:
        table.caption = (
            f"stopped early, after step {trained['steps']:,} of {trained['steps_planned']:,}; best at step "
            f"{trained['best_step']:,}"
        )
        table.caption_justify = "left"
    return table


def calibration(found: Calibration) -> Table:
    """Thresholds, and what share of a job's rows will reach them."""
    table = _table("fraction", "threshold", f"realised in {found.traffic_rows:,} rows (95%)")
    for fraction, threshold in found.thresholds.items():
        table.add_row(fraction, f"{threshold.value:.3f}", f"{threshold.low:.4f} to {threshold.high:.4f}")
    return table


def standing(state: Mapping[str, Any]) -> Group:
    """Where an unfinished job stands."""
    return Group(
        stages(state["stages"]),
        "running"
        if state["running"]
        else f"not running; the same `{state['command']}` command goes on from here",
    )


def stages(progress: Mapping[str, Sequence[int]]) -> Table:
    """How far a job is."""
    table = _table("stage", "done", "of")
    for name, (done, total) in progress.items():
        table.add_row(name, f"{done:,}", f"{total:,}")
    return table


def checked(check: Mapping[str, Any]) -> Table:
    """What a dry run found."""
    table = _table("dry run", "")
    for name, value in check.items():
        table.add_row(name, str(value))
    return table


def health(lines: Iterable[Finding]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "what", "found", "next move"):
        table.add_column(name, overflow="fold")
    for line in lines:
        mark, move = ("ok", "") if line.fine else ("NO", line.next_move)
        table.add_row(mark, line.what, line.found, move)
    return table


def console() -> Console:
    return Console(highlight=False, markup=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = index > 0 and len(columns) > 2
        longest_word = max(map(len, name.split()), default=None)
        table.add_column(
            name, justify="right" if numeric else "left", overflow="fold", min_width=longest_word
        )
    return table


def _extent(report: Mapping[str, Any]) -> str:
    return f"{report['rows']:,} in {counted(report['shards'], 'shard')}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _interval(value: Mapping[str, float | None]) -> str:
    return f"{_number(value['value'])} ({_number(value['low'])} to {_number(value['high'])})"
