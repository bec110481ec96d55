"""How learning draws: one style, the same bytes for the same numbers, PNG and SVG. It knows no data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from routelmt_batch.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers can tell apart (jfly.uni-koeln.de/color), and two dark ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A6D3B", "#4D4D4D")
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


@contextlib.contextmanager
def drawing(stem: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) to draw on; left without an error, it is written as `stem`.png and `stem`.svg."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        # No date and no library version in the files: the same numbers give the same bytes.
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):

            def write(file: Path, kind: str = kind, metadata: dict[str, None] = metadata) -> None:
                figure.savefig(file, format=kind, dpi=160, metadata=metadata)

            write_atomically(stem.with_name(f"{stem.name}.{kind}"), write, lambda file: None, "figure")
