"""Draws figures in one style; the same numbers give the same bytes. It knows nothing of the data."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routelmt_batch.files.write import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for colour-blind readers (jfly.uni-koeln.de/color), and two dark ones.
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


_NO_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


@contextlib.contextmanager
def drawing(stem: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) to draw on; after the block it is written as `stem`.png and `stem`.svg."""
    with _styled_figure(width, height) as figure:
        yield figure
        for kind in ("png", "svg"):

            def write(file: Path, kind: str = kind) -> None:
                _save(figure, file, kind)

            write_file(stem.with_name(f"{stem.name}.{kind}"), write, lambda file: None, "figure")


def inline_svg(
    name: str, width: float, height: float, variables: Mapping[str, str], draw: Callable[[Figure], None]
) -> str:
    """Draw a figure (inches) with `draw`, and return it as an `<svg>` element for a web page.

    Its text stays text, in the page's font. Its ids begin with `name`, so that they differ from other
    figures' ids. `variables` gives the CSS variable that replaces each colour (#rrggbb), so that the
    figure follows the page's light or dark style.
    """
    file = io.StringIO()
    with _styled_figure(width, height, {"svg.fonttype": "none"}) as figure:
        draw(figure)
        _save(figure, file, "svg")
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


@contextlib.contextmanager
def _styled_figure(width: float, height: float, style: Mapping[str, Any] | None = None) -> Iterator[Figure]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, **(style or {})}):
        yield Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, file: Path | io.StringIO, kind: str) -> None:
    """Save without date and library version, so that the same numbers give the same bytes."""
    figure.savefig(file, format=kind, dpi=160, metadata=_NO_METADATA[kind])
