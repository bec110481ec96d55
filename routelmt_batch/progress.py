"""Progress of a pass on the terminal: rows, rows/s, time left. Plain lines where there is none.

It knows counts and names only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]
Tell = Callable[[int, str], None]  # how far, and what to say beside it
_LINE_EVERY_S = 30.0


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def stderr_console() -> Console:
    """Standard error by a descriptor of its own: the real one goes to a log file while engines run."""
    return Console(file=os.fdopen(os.dup(2), "w", encoding="utf8"), highlight=False, markup=False)


class _RowsPerSecond(ProgressColumn):
    """The speed of the last seconds; of a finished pass, rows over its whole time."""

    def render(self, task: Task) -> Text:
        if task.finished and task.finished_time:
            rows = task.completed - task.fields["before"]
            return Text(speed(rows / task.finished_time, task.fields["unit"]))
        return Text(speed(task.speed, task.fields["unit"]) if task.speed else "starting")


def speed(per_second: float, unit: str) -> str:
    """Units per second, or seconds per unit where that is more than one."""
    if 0 < per_second < 1:
        return f"{1 / per_second:,.1f} s/{unit.removesuffix('s')}"
    return f"{per_second:,.0f} {unit}/s"


class Bars:
    """Draws passes on a console; `quiet` draws nothing."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    @classmethod
    def none(cls) -> Bars:
        return cls(Console(quiet=True), quiet=True)

    def warn(self, message: str) -> None:
        if not self.quiet:
            self.console.print(f"warning: {message}", style="yellow", markup=False)

    @contextmanager
    def rows(self, name: str, total: int, done: int = 0, unit: str = "rows") -> Iterator[Advance]:
        """Show a pass over `total` rows of which `done` were committed before."""
        with self.steps(name, total, done, unit) as tell:
            yield lambda rows: tell(rows, "")

    @contextmanager
    def steps(self, name: str, total: int, done: int = 0, unit: str = "steps") -> Iterator[Tell]:
        """As `rows`, of work that has more to say than how far it is."""
        if self.quiet:
            yield lambda steps, note: None
        elif self.console.is_terminal:
            yield from self._bar(name, total, done, unit)
        else:
            yield from self._lines(name, total, done, unit)

    def _bar(self, name: str, total: int, done: int, unit: str) -> Iterator[Tell]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RowsPerSecond(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # Not redirected: what libraries print goes where standard error goes, and not above the bar.
        with Progress(
            *columns, console=self.console, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task(name, total=total, completed=done, before=done, unit=unit, note="")

            def tell(rows: int, note: str) -> None:
                progress.update(task, advance=rows, note=note)

            yield tell

    def _lines(self, name: str, total: int, done: int, unit: str) -> Iterator[Tell]:
        started = told = time.monotonic()
        state = {"done": done, "told": told}
        self.console.print(f"{name}: {total - done:,} {unit} to do of {total:,}", highlight=False)

        def tell(rows: int, note: str) -> None:
            state["done"] += rows
            now = time.monotonic()
            if now - state["told"] >= _LINE_EVERY_S:
                state["told"] = now
                per_second = (state["done"] - done) / (now - started)
                left = (total - state["done"]) / per_second if per_second else float("nan")
                self.console.print(
                    f"{name}: {state['done']:,}/{total:,} {unit}, {speed(per_second, unit)}, "
                    f"{left:,.0f} s left" + (f"; {note}" if note else ""),
                    highlight=False,
                )

        yield tell
        seconds = time.monotonic() - started
        self.console.print(f"{name}: {state['done']:,}/{total:,} {unit} in {seconds:.1f} s", highlight=False)
