"""Figures of learning, as PNG and SVG. They draw what they are given; nothing is measured here.

Colour-blind readers can tell the colours apart: routers have Okabe and Ito's (jfly.uni-koeln.de/color)
and two dark ones, gain buckets brown to blue.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from routelmt_batch.atomic import write_atomically
from routelmt_batch.learning.evaluation.measures import Floats
from routelmt_batch.learning.evaluation.show import bucket_name, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A6D3B", "#4D4D4D")
REFERENCES = {"oracle-gain": "#000000", "oracle-quality": "#777777", "random": "#AAAAAA"}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_LOSSES, _GAINS = ("#8C2D04", "#D94801", "#FDAE6B"), ("#C6DBEF", "#6BAED6", "#2171B5", "#08306B")
_STYLE = {
    "svg.hashsalt": "routelmt-batch",  # else the ids in an SVG are random
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
_BINS = 10
_MOST_POINTS = 3000


def budget_curve(evaluation: Mapping[str, Any], stem: Path) -> None:
    """Mean quality by budget, every router; beside it the gains of the rows routed at the job's budget.

    Writes `stem`.png and `stem`.svg.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        rows = len(evaluation["routers"]) + 1
        figure = Figure(figsize=(13, max(4.8, 1.8 + 0.3 * rows)), layout="constrained")
        curves, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _curves(curves, evaluation)
        _bucket_bars(bars, evaluation)
        _save(figure, stem)


def predicted_against_realised(
    predicted: Floats, realised: Floats, stem: Path, title: str, target: str = "gain"
) -> None:
    """Realised `target` of rows by the predicted one: means of tenths, with 95% intervals, over rows.

    Each tenth holds as many rows; the interval is 1.96 standard errors of its mean. Rows without a
    prediction are left out. Writes `stem`.png and `stem`.svg.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    known = np.isfinite(predicted) & np.isfinite(realised)
    predicted, realised = np.asarray(predicted)[known], np.asarray(realised)[known]
    with rc_context(_STYLE):
        figure = Figure(figsize=(6, 5.4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_xlabel(f"predicted {target} (points)")
        axes.set_ylabel(f"realised {target} (points)")
        if len(predicted):
            _rows_and_tenths(axes, predicted, realised)
        _save(figure, stem)


def _curves(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    styles = _styles(evaluation)
    names = ranked(evaluation)
    for name in names:
        curve = evaluation["routers"][name]["curve"]
        budget = 100 * np.array(curve["budget"])
        colour, dash, width = styles[name]
        axes.plot(budget, curve["quality"], color=colour, linestyle=dash, linewidth=width, label=name)
    mark = 100 * float(evaluation["budget"])
    axes.axvline(mark, color="#000000", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"budget {mark:g}%",
        (mark, 0.01),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
    )
    axes.set_xlim(0, 100)
    axes.set_xlabel("rows sent to the large model (%)")
    axes.set_ylabel("mean quality of the corpus (points)")
    axes.set_title("Quality by budget")
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(
        title="by MeanDelta, best first",
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        alignment="left",
    )


def _styles(evaluation: Mapping[str, Any]) -> dict[str, tuple[Any, Any, float]]:
    """Colour, dash and width of each router: references in greys, the rest by their place in the job."""
    styles: dict[str, tuple[Any, Any, float]] = {}
    for name in evaluation["routers"]:
        if name in REFERENCES:
            styles[name] = (REFERENCES[name], "-" if name == "random" else (0, (4, 2)), 1.3)
        else:
            at = len(styles.keys() - REFERENCES.keys())
            styles[name] = (COLOURS[at % len(COLOURS)], _DASHES[at // len(COLOURS) % len(_DASHES)], 1.8)
    return styles


def _bucket_bars(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    bars = {"all rows": evaluation["buckets_of_all_rows"]}
    bars |= {name: evaluation["routers"][name]["buckets"] for name in reversed(ranked(evaluation))}
    buckets = evaluation["buckets_of_all_rows"]
    left = np.zeros(len(bars))
    for index, (bucket, colour) in enumerate(zip(buckets, _bucket_colours(buckets), strict=True)):
        widths = np.array([row[index]["percent"] or 0.0 for row in bars.values()])
        axes.barh(
            list(bars),
            widths,
            left=left,
            color=colour,
            label=bucket_name(bucket),
            edgecolor="white",
            linewidth=0.5,
            height=0.8,
        )
        for at, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 6:
                axes.text(
                    start + width / 2,
                    at,
                    f"{width:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=_ink(colour),
                )
        left += widths
    axes.set_xlim(0, 100)
    axes.set_xlabel("rows (%)")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"Gain of the {evaluation['k']:,} routed rows (points)")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.11),
        ncols=len(buckets),
        frameon=False,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
        borderaxespad=0.2,
        fontsize=8,
    )


def _bucket_colours(buckets: list[Mapping[str, Any]]) -> list[str]:
    """Browns for losses, the darkest the worst; blues for gains, the darkest the best."""
    losses = sum(bucket["to"] is not None and bucket["to"] <= 0 for bucket in buckets)
    gains = len(buckets) - losses
    # The lightest tones meet at 0; with more buckets than tones the outermost share the darkest.
    browns = [_LOSSES[max(0, len(_LOSSES) - losses + place)] for place in range(losses)]
    return browns + [_GAINS[min(place, len(_GAINS) - 1)] for place in range(gains)]


def _ink(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"


def _rows_and_tenths(axes: Axes, predicted: Floats, realised: Floats) -> None:
    step = max(1, len(predicted) // _MOST_POINTS)
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
    tenths = [part for part in np.array_split(np.argsort(predicted, kind="stable"), _BINS) if len(part)]
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
    axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")


def _save(figure: Figure, stem: Path) -> None:
    # No date and no library version in the files: the same numbers give the same bytes.
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):

        def write(file: Path, kind: str = kind, metadata: dict[str, None] = metadata) -> None:
            figure.savefig(file, format=kind, dpi=160, metadata=metadata)

        write_atomically(stem.with_name(f"{stem.name}.{kind}"), write, lambda file: None, "figure")
