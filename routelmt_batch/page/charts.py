"""The page's charts as SVG: the budget curve and the gain histogram, in the page's colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from routelmt_batch.page.figures import inline_svg
from routelmt_batch.stages.job_report import JobReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholder colours to draw in, and the page's CSS variable that replaces each.
_INK, _MUTED, _LINE, _SMALL, _LARGE = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _SMALL: "small", _LARGE: "large"}
_WIDTH, _HEIGHT = 7.2, 3.4  # inches


def budget_curve(report: JobReport) -> str | None:
    """Predicted gain bought by each budget, with what the job planned and got; None if no row has a gain."""
    budgets, rows = report.budgets, report.budget.calls_with_gain
    if not budgets or not rows:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "rows sent to the large model (%)", "predicted gain bought")
        shares = [0.0, *(100 * line.rows / rows for line in budgets)]
        bought = [0.0, *(line.predicted_gain for line in budgets)]
        first = "highest gains first" if report.budget.unit == "calls" else "highest gain per cost first"
        axes.plot(shares, bought, color=_LARGE, linewidth=1.8, label=first)
        mean = report.gain.all.mean
        if mean is not None:
            axes.plot(
                [0, 100], [0, mean * rows], color=_MUTED, linewidth=1, linestyle="--", label="at random"
            )
        for name, count, gain, fill in (
            ("planned", report.budget.planned, report.predicted_gain_planned, "none"),
            ("this job", report.budget.used, report.predicted_gain_bought, _INK),
        ):
            axes.plot(
                100 * count / rows, gain, "o", markersize=9, color=_INK, markerfacecolor=fill, label=name
            )
        axes.set_xlim(-1, 101)
        axes.set_ylim(bottom=min(0, *bought))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _legend(axes)

    return inline_svg("curve", _WIDTH, _HEIGHT, _VARIABLES, draw)


def histogram(report: JobReport) -> str | None:
    """Rows by predicted gain, coloured by planned model, with the cut; None if no row has a gain."""
    gain = report.gain
    edges = np.array(gain.all.histogram.edges)
    counts, routed = (np.array(part.histogram.counts) for part in (gain.all, gain.routed))
    if not counts.any():
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "predicted gain", "rows")
        width = edges[1] - edges[0]
        left = np.append(edges[0] - width, edges)  # the open ends are drawn as wide as the rest
        for name, height, below, colour in (
            ("small", counts - routed, np.zeros(len(counts)), _SMALL),
            ("large", routed, counts - routed, _LARGE),
        ):
            axes.bar(
                left, height, width, below, align="edge", color=colour, edgecolor="none", label=f"to {name}"
            )
        cut = report.threshold
        if cut is not None:
            axes.axvline(cut, color=_INK, linewidth=1.2, linestyle="--", label=f"cut at {cut:,.2f}")
        some = np.flatnonzero(counts)
        axes.set_xlim(left[some[0]] - width, left[some[-1]] + 2 * width)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _legend(axes)

    return inline_svg("gains", _WIDTH, _HEIGHT, _VARIABLES, draw)


def _axes(figure: Figure, x: str, y: str) -> Axes:
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_MUTED, labelcolor=_INK)
    for spine in axes.spines.values():
        spine.set_color(_MUTED)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes) -> None:
    axes.legend(
        frameon=False, labelcolor=_INK, handlelength=1.6, ncols=4, loc="lower left", bbox_to_anchor=(0, 1)
    )
