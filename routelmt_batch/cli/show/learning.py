"""Labels, a trained router and its thresholds as tables."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from routelmt_batch.cli.show.parts import counts, extent, new_table, number
from routelmt_batch.job.conditions import triggered
from routelmt_batch.learning.labelling.label_report import LabelReport
from routelmt_batch.learning.training.report import TrainReport
from routelmt_batch.names import one_line
from routelmt_batch.routers.card import Calibration


def labels(report: LabelReport) -> Group:
    """Labels: how many rows have a gain, why the others do not, and means by direction."""
    rows = new_table(report.name, "")
    rows.add_row("rows", f"{extent(report.rows, report.shards)}, {report.labelled:,} labelled")
    rows.add_row("unlabelled", counts(report.unlabelled) or "none")
    rows.add_row("metric", report.signature.metric.signature)
    if any(report.cut.values()):
        cut = "; ".join(f"{count:,} of {name}" for name, count in report.cut.items())
        rows.add_row("cut", f"longer than the metric reads, so only their beginning was measured: {cut}")
    if (found := report.overall.reliability) and found.correlation is not None:
        rows.add_row(
            "reliability",
            f"{found.correlation:.2f} ({number(found.low)} to {number(found.high)}), the correlation of the "
            f"gains by two references, {found.rows:,} rows",
        )
    for condition in triggered(report.fail_if or ()):
        rows.add_row("fail if", condition)
    for name, reason in report.unreadable.items():
        rows.add_row("unreadable", f"{one_line(name)}: {reason}")
    means = new_table("direction", "labelled", "small", "large", "gain", "st. dev.")
    for name, part in [*report.direction.items(), ("all", report.overall)]:
        values = (part.quality_small, part.quality_large, part.gain, part.gain_standard_deviation)
        means.add_row(name, f"{part.labelled:,}", *map(number, values))
    return Group(rows, means)


def training(report: TrainReport) -> Table:
    """A trained router on its held-out rows, and whether its training stopped early."""
    table = new_table("held out", "rows", "R2", "MAE", "Pearson", "Spearman", "calibration error")
    held_out = report.held_out
    for name, part in [("overall", held_out.overall), *held_out.directions.items()]:
        table.add_row(name, f"{part.rows:,}", *("-" if v is None else f"{v:.3f}" for v in part.values))
    trained = report.trained
    if trained.stopped_early:
        table.caption = (
            f"stopped early, after step {trained.steps:,} of {trained.steps_planned:,}; best at step "
            f"{trained.best_step:,}"
        )
        table.caption_justify = "left"
    return table


def calibration(result: Calibration) -> Table:
    """Thresholds, and the share of a later job's rows that will reach them."""
    table = new_table("fraction", "threshold", f"realised in {result.traffic_rows:,} rows (95%)")
    for fraction, threshold in result.thresholds.items():
        table.add_row(fraction, f"{threshold.value:.3f}", f"{threshold.low:.4f} to {threshold.high:.4f}")
    return table
