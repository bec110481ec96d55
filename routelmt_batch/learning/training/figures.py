"""Draws a router's predictions for held-out rows against the realised values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from routelmt_batch.learning.training.regression import BINS, Floats
from routelmt_batch.page.figures import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS, _MOST_POINTS_SMALL = 3000, 300
_COLUMNS = 4


def predicted_against_realised(
    predicted: Floats, realised: Floats, stem: Path, title: str, target: str = "gain"
) -> None:
    """Plot realised against predicted `target`: rows, and the means of tenths with 95% intervals.

    All tenths have the same number of rows; an interval is 1.96 standard errors of the mean. Rows without
    a prediction are left out. Writes `stem`.png and `stem`.svg.
    """
    with drawing(stem, 6, 5.4) as figure:
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_xlabel(f"predicted {target} (points)")
        axes.set_ylabel(f"realised {target} (points)")
        if _rows_and_tenths(axes, predicted, realised, _MOST_POINTS):
            axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")


def by_direction(
    predicted: Floats, realised: Floats, directions: Sequence[str], stem: Path, target: str = "gain"
) -> None:
    """Plot predicted_against_realised for each direction, as small multiples in name order.

    `directions` has the name for each row. Panels have different scales: read the tenths against the dotted
    line, where realised equals predicted. Writes `stem`.png and `stem`.svg.
    """
    of_row = np.asarray(directions)
    names = sorted(set(directions))
    columns = min(_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    with drawing(stem, 2.4 * columns + 0.4, 2.2 * lines + 0.4) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for axes, name in zip(panels, names, strict=False):
            rows = of_row == name
            axes.set_title(f"{name} ({rows.sum():,} rows)")
            _rows_and_tenths(axes, predicted[rows], realised[rows], _MOST_POINTS_SMALL)
        for axes in list(panels)[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel(f"predicted {target} (points)", fontsize="medium")
        figure.supylabel(f"realised {target} (points)", fontsize="medium")


def _rows_and_tenths(axes: Axes, predicted: Floats, realised: Floats, most_points: int) -> bool:
    """Draw rows and the means of tenths; False if there is no row to draw."""
    known = np.isfinite(predicted) & np.isfinite(realised)
    predicted, realised = predicted[known], realised[known]
    if not len(predicted):
        return False
    step = -(-len(predicted) // most_points)
    axes.scatter(
        predicted[::step],
        realised[::step],
        s=5,
        color="#999999",
        alpha=0.35,
        linewidths=0,
        label="row" if step == 1 else f"row (1 of {step})",
        rasterized=True,
    )
    low, high = np.percentile(predicted, [0.5, 99.5])
    bottom, top = np.percentile(realised, [1, 99])
    axes.axhline(0, color="#CCCCCC", linewidth=0.8, zorder=0)
    axes.axline(
        (low, low), slope=1, color="#000000", linewidth=0.9, linestyle=":", label="realised = predicted"
    )
    tenths = [part for part in np.array_split(np.argsort(predicted, kind="stable"), BINS) if len(part)]
    means = np.array([[predicted[part].mean(), realised[part].mean()] for part in tenths])
    errors = [1.96 * realised[part].std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else 0 for part in tenths]
    axes.errorbar(
        means[:, 0],
        means[:, 1],
        yerr=errors,
        color=COLOURS[0],
        marker="o",
        markersize=5,
        linewidth=1.4,
        capsize=2.5,
        label="mean of a tenth of rows, 95% interval",
    )
    margin = 0.05 * max(high - low, 1e-6)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(min(bottom, low) - margin, max(top, high) + margin)
    return True
