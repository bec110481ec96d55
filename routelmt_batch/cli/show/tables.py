"""Other tables: budgets, a comparison, progress, a dry run, cleaned files, a machine's health."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from routelmt_batch.cli.doctor import Finding
from routelmt_batch.cli.show.parts import counts, new_table, number
from routelmt_batch.job.clean import Cleaned
from routelmt_batch.job.findings import Found
from routelmt_batch.job.rates import Estimate
from routelmt_batch.spec.values import Unit
from routelmt_batch.stages.job_report import WhatIf

_MOST_FINDINGS = 30
_ONE: dict[Unit, str] = {"calls": "call", "tokens": "token", "seconds": "second", "cost": "cost"}


def what_if(lines: Sequence[WhatIf], unit: Unit = "calls", estimates: Sequence[Estimate] = ()) -> Table:
    """What each budget buys; if it counts no calls, what of its unit is spent, and what ranking by gain alone
    would buy; with estimates, in how many hours and for how much."""
    names = ["budget", "calls to large", "prompt tokens", "predicted gain", "gain/row", "threshold"]
    counts_calls = unit == "calls"
    if not counts_calls:
        names[1:1] = [unit]
        names[-1:] = ["by gain alone", f"threshold, gain/{_ONE[unit]}"]
    table = new_table(*names, *(("hours", "cost") if estimates else ()))
    for line, estimate in itertools.zip_longest(lines, estimates):
        table.add_row(
            f"{line.fraction:.2f}",
            *(() if counts_calls else (f"{line.spent or 0:,.2f}",)),
            f"{line.rows:,}",
            f"{line.prompt_tokens:,}",
            f"{line.predicted_gain:,.1f}",
            number(line.predicted_gain / line.rows if line.rows else None),
            *(() if counts_calls else (number(line.predicted_gain_by_gain),)),
            number(line.threshold) if counts_calls else f"{line.threshold or 0:.4g}",
            *((number(estimate.hours), number(estimate.cost)) if estimate else ()),
        )
    return table


def comparison(compared: Mapping[str, Any]) -> Group:
    """Two jobs side by side: figures, directions, score drift, rows routed differently."""
    figures = new_table("", "this job", "the other")
    for name, pair in compared["figures"].items():
        digits = 4 if "share" in name else 2 if isinstance(pair[0], float) else 0
        figures.add_row(name, *("-" if value is None else f"{value:,.{digits}f}" for value in pair))
    for group in ("status", "reason"):
        for name, pair in compared[group].items():
            figures.add_row(f"{group} {name}", *(f"{count:,}" for count in pair))
    for name, pair in compared["direction"].items():
        figures.add_row(f"{name} to large", *("-" if share is None else f"{share:.4f}" for share in pair))
    summary = new_table("compared", "")
    for side, folder in zip(("this job", "the other"), compared["folders"], strict=True):
        summary.add_row(side, folder)
    if drift := compared["drift"]:
        summary.add_row(
            "score drift",
            f"population stability index {drift['psi']:.3f}, Kolmogorov-Smirnov distance {drift['ks']:.3f}",
        )
    routed = compared["routed"]
    ways = f": {counts(routed['ways'])}" if routed["ways"] else ""
    shared = f"{routed['common']:,} rows in both"
    summary.add_row("routed differently", f"{routed['different']:,} of {shared}{ways}")
    for name, (ours, theirs) in compared["settings"].items():
        summary.add_row("differs", f"{name}: {ours}, was {theirs}")
    return Group(summary, figures)


def unfinished(state: Mapping[str, Any]) -> Group:
    """The progress of an unfinished job."""
    return Group(
        stages(state["stages"]),
        "running"
        if state["running"]
        else f"not running; run the same `{state['command']}` command again to continue",
    )


def stages(progress: Mapping[str, Sequence[int]]) -> Table:
    """A job's progress by stage."""
    table = new_table("stage", "done", "of")
    for name, (done, total) in progress.items():
        table.add_row(name, f"{done:,}", f"{total:,}")
    return table


def checked(check: Mapping[str, Any]) -> Table:
    """What a dry run found."""
    table = new_table("dry run", "")
    for name, value in check.items():
        table.add_row(name, str(value))
    return table


def cleaned(files: Cleaned, would: bool) -> RenderableType:
    """What was removed, or would be."""
    if not files.removed:
        return "nothing to clean"
    table = new_table("work files of", "files", "size")
    for stage in files.removed:
        table.add_row(stage.stage, f"{stage.files:,}", decimal(stage.bytes))
    freed = decimal(files.freed_bytes)
    if would:
        return Group(table, f"at most {freed} would be freed")
    kept = f", kept {decimal(files.kept_bytes)} of translations" if files.kept_bytes else ""
    return Group(table, f"freed {freed}{kept}")


def verified(found: Found, mended: Sequence[str]) -> str:
    """What was mended, what is wrong, and how much was checked: a line each, so that they can be searched."""
    lines = [f"mended: {line}" for line in mended]
    for finding in found.findings[:_MOST_FINDINGS]:
        kind = "damaged" if finding.damage else "note"
        lines.append(
            f"{kind}: {finding.where} {finding.wrong}. Lost: {finding.lost}. Next: {finding.remedy.words}."
        )
    if (more := len(found.findings) - _MOST_FINDINGS) > 0:
        lines.append(f"and {more:,} more: --json lists all")
    if found.damaged and found.running:
        lines.append(
            "a run holds this job: what it is writing may look damaged. Check again when it has ended"
        )
    checked = ", ".join(f"{count:,} {what}" for what, count in found.checked.items())
    state = "finished" if found.finished else "running" if found.running else "not finished"
    return "\n".join(
        [*lines, f"checked: {checked}; the job is {state}", "damaged" if found.damaged else "whole"]
    )


def health(lines: Iterable[Finding]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "what", "found", "next move"):
        table.add_column(name, overflow="fold")
    for line in lines:
        mark, move = ("ok", "") if line.fine else ("NO", line.next_move)
        table.add_row(mark, line.what, line.found, move)
    return table
