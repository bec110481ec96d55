"""The parts of tables on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from routelmt_batch.progress import SafeConsole, counted

_NO_TERMINAL = 1000  # columns


def console() -> Console:
    """Standard output. Unless it is a terminal or COLUMNS is a width, lines are not cut or wrapped, so that
    they can be searched."""
    columns = os.environ.get("COLUMNS", "")
    wide = not sys.stdout.isatty() and not (columns.isdecimal() and int(columns))
    return SafeConsole(highlight=False, markup=False, width=_NO_TERMINAL if wide else None)


def new_table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = index > 0 and len(columns) > 2
        longest_word = max(map(len, name.split()), default=None)
        table.add_column(
            name, justify="right" if numeric else "left", overflow="fold", min_width=longest_word
        )
    return table


def extent(rows: int, shards: int) -> str:
    return f"{rows:,} in {counted(shards, 'shard')}"


def counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def interval(value: Mapping[str, float | None]) -> str:
    return f"{number(value['value'])} ({number(value['low'])} to {number(value['high'])})"
