"""Draws an evaluation: quality by budget, and the gains of the routed rows. It measures nothing.

Gain buckets go from brown to blue, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from routelmt_batch.learning.evaluation.result import Bucket, Evaluation
from routelmt_batch.learning.evaluation.show import bucket_name, ranked
from routelmt_batch.page.figures import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCES = {"oracle-gain": "#000000", "oracle-quality": "#777777", "random": "#AAAAAA"}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_LOSSES, _GAINS = ("#8C2D04", "#D94801", "#FDAE6B"), ("#C6DBEF", "#6BAED6", "#2171B5", "#08306B")


def budget_curve(evaluation: Evaluation, stem: Path) -> None:
    """Mean quality by budget, every router; beside it the gains of the rows routed at the job's budget.

    Writes `stem`.png and `stem`.svg.
    """
    rows = len(evaluation.routers) + 1
    with drawing(stem, 13, max(4.8, 1.8 + 0.3 * rows)) as figure:
        curves, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _curves(curves, evaluation)
        _bucket_bars(bars, evaluation)


def _curves(axes: Axes, evaluation: Evaluation) -> None:
    styles = _styles(evaluation)
    names = ranked(evaluation)
    for name in names:
        curve = evaluation.routers[name].curve
        budget = 100 * np.array(curve.budget)
        colour, dash, width = styles[name]
        axes.plot(budget, curve.quality, color=colour, linestyle=dash, linewidth=width, label=name)
    mark = 100 * float(evaluation.budget)
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


def _styles(evaluation: Evaluation) -> dict[str, tuple[Any, Any, float]]:
    """Colour, dash and width of each router: references in grey, the others by their order."""
    styles: dict[str, tuple[Any, Any, float]] = {}
    for name in evaluation.routers:
        if name in REFERENCES:
            styles[name] = (REFERENCES[name], "-" if name == "random" else (0, (4, 2)), 1.3)
        else:
            at = len(styles.keys() - REFERENCES.keys())
            styles[name] = (COLOURS[at % len(COLOURS)], _DASHES[at // len(COLOURS) % len(_DASHES)], 1.8)
    return styles


def _bucket_bars(axes: Axes, evaluation: Evaluation) -> None:
    bars = {"all rows": evaluation.buckets_of_all_rows}
    bars |= {name: evaluation.routers[name].buckets for name in reversed(ranked(evaluation))}
    buckets = evaluation.buckets_of_all_rows
    left = np.zeros(len(bars))
    for index, (bucket, colour) in enumerate(zip(buckets, _bucket_colours(buckets), strict=True)):
        widths = np.array([row[index].percent or 0.0 for row in bars.values()])
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
    axes.set_title(f"Gain of the {evaluation.k:,} routed rows (points)")
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


def _bucket_colours(buckets: list[Bucket]) -> list[str]:
    """Browns for losses, the darkest the worst; blues for gains, the darkest the best."""
    losses = sum(bucket.to is not None and bucket.to <= 0 for bucket in buckets)
    gains = len(buckets) - losses
    # The lightest tones meet at 0. With more buckets than tones, the outermost buckets share the darkest.
    browns = [_LOSSES[max(0, len(_LOSSES) - losses + place)] for place in range(losses)]
    return browns + [_GAINS[min(place, len(_GAINS) - 1)] for place in range(gains)]


def _ink(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"
