"""Renders the page into one file that needs no other file.

Jinja2 escapes every value, the script's data is JSON without a `<`, and the page's own
Content-Security-Policy allows only its own script and loads nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from routelmt_batch import __version__
from routelmt_batch.files.write import Check, plain, write_text
from routelmt_batch.page import charts, reasons, shard_table
from routelmt_batch.page.excerpts import choose_shards, excerpt
from routelmt_batch.page.shard_table import by_reason, lines
from routelmt_batch.spec import Page
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.job_report import JobReport

if TYPE_CHECKING:
    from jinja2 import Template


def write_page(
    job: FinishedJob,
    settings: Page,
    comparison: dict[str, Any] | None = None,
    check: Check = lambda: None,
) -> None:
    """Write `reports/index.html`, with a comparison (see `compare`) if there is one. See write_file for
    `check`."""
    write_text(job.folder.page, render(job, settings, comparison), "page", check)


def render(job: FinishedJob, settings: Page, comparison: dict[str, Any] | None = None) -> str:
    """The page's HTML."""
    from markupsafe import Markup

    shards = lines(job)
    ledger = job.folder.ledger()
    shown = choose_shards(shards, settings.shards if settings.rows else 0)
    script = (files(__package__) / "page.js").read_text(encoding="utf8")
    return _template().render(
        version=__version__,
        report=job.report,
        settings=settings,
        spec=job.spec,
        times=[event["at"] for event in ledger.events_of("pass")],
        curve=Markup(charts.budget_curve(job.report) or ""),
        histogram=Markup(charts.histogram(job.report) or ""),
        reasons=_reasons(job.report, by_reason(shards)),
        marked=[line for line in shards if line["marks"]],
        shown=len(shown),
        rule=shard_table,
        comparison=comparison,
        data=plain(
            {
                "shards": {key: [line[key] for line in shards] for key in shards[0]},
                "share": job.report.fraction.actual,
                "threshold": job.report.threshold,
                "excerpts": {name: excerpt(job, ledger, name, settings.rows) for name in shown},
            }
        ),
        words=reasons.REASONS,
        style=Markup((files(__package__) / "page.css").read_text(encoding="utf8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= {"number": _number, "change": _change, "percent": _percent, "duration": _duration}
    return environment.get_template("page.html")


def _reasons(report: JobReport, most: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """Rows by reason, failures first."""
    rows_by_reason = [
        {"reason": reason, "kind": reasons.kind(reason), "rows": rows, "most": most.get(reason)}
        for reason, rows in report.reason.items()
    ]
    return sorted(rows_by_reason, key=lambda line: (reasons.KINDS.index(line["kind"]), -line["rows"]))


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _change(pair: Sequence[float | None], digits: int = 0) -> str:
    now, before = pair
    if now is None or before is None:
        return "–"
    change = f"{now - before:+,.{digits}f}"
    return change if change.strip("+-0.") else "0"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _duration(seconds: float) -> str:
    """`3 h 12 min`, `4 min 5 s`, `7.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
