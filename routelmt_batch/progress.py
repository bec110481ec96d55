"""A job's progress and warnings: bars on a terminal, plain lines elsewhere, or JSON lines.

It knows only counts and names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

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

from routelmt_batch.names import visible
from routelmt_batch.sinks import Sink

Advance = Callable[[int], None]
Tell = Callable[[int, str], None]  # takes the steps just done and a note to show
Level = Literal["info", "warning", "error"]
_LINE_EVERY_S = 30.0
_STYLES: dict[Level, str] = {"info": "", "warning": "yellow", "error": "red"}


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class SafeConsole(Console):
    """A console on which texts cannot move the cursor, set a title or pretend to be other lines."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def stderr_console() -> Console:
    """A console on a copy of standard error: while engines run, standard error itself goes to a log file."""
    return SafeConsole(file=Sink(os.dup(2), owned=True), highlight=False, markup=False)


class _RowsPerSecond(ProgressColumn):
    """The current speed of a running pass, or the average speed of a finished one."""

    def render(self, task: Task) -> Text:
        if task.finished and task.finished_time:
            rows = task.completed - task.fields["before"]
            return Text(speed(rows / task.finished_time, task.fields["unit"]))
        return Text(speed(task.speed, task.fields["unit"]) if task.speed else "starting")


def speed(per_second: float, unit: str) -> str:
    """Units per second, or seconds per unit if a unit takes more than a second."""
    if 0 < per_second < 1:
        return f"{1 / per_second:,.1f} s/{unit.removesuffix('s')}"
    return f"{per_second:,.0f} {unit}/s"


@dataclass
class Pass:
    """A pass's progress; `done` includes what was committed before it started."""

    total: int
    done: int
    unit: str
    running: bool = True


class Bars:
    """Shows progress on a console: nothing if `quiet`, one JSON object a line if `as_json`.

    It keeps the progress of all `passes` by name, and counts `warnings`.
    """

    def __init__(self, console: Console, quiet: bool = False, as_json: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.as_json = as_json
        self.passes: dict[str, Pass] = {}
        self.warnings = 0

    @classmethod
    def none(cls) -> Bars:
        return cls(Console(quiet=True), quiet=True)

    def warn(self, message: str) -> None:
        self.say(message, "warning")

    def say(self, message: str, level: Level = "info", **fields: Any) -> None:
        """Print one line. `fields` repeat its values for programs, and appear only in JSON."""
        self.warnings += level == "warning"
        if self.quiet:
            return
        if self.as_json:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"time": at, "level": level, "message": message, **fields}
            self.console.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.console.file.flush()
            return
        self.console.print(
            message if level == "info" else f"{level}: {message}",
            style=_STYLES[level],
            markup=False,
            highlight=False,
            # Not wrapped: a log is searched by line, and an error is copied from the terminal.
            soft_wrap=level == "error" or not self.console.is_terminal,
        )

    @contextmanager
    def rows(self, name: str, total: int, done: int = 0, unit: str = "rows") -> Iterator[Advance]:
        """Show a pass over `total` rows; `done` rows were committed before."""
        with self.steps(name, total, done, unit) as tell:
            yield lambda rows: tell(rows, "")

    @contextmanager
    def steps(self, name: str, total: int, done: int = 0, unit: str = "steps") -> Iterator[Tell]:
        """Like `rows`, but each step may show a note."""
        state = self.passes[name] = Pass(total, done, unit)
        display = self._bar if self.console.is_terminal and not (self.as_json or self.quiet) else self._lines
        try:
            with display(name, total, done, unit) as show:

                def tell(steps: int, note: str) -> None:
                    state.done += steps
                    show(steps, note)

                yield tell
        finally:
            state.running = False

    @contextmanager
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
        # Not redirected: what libraries print goes to standard error, not above the bar.
        with Progress(
            *columns, console=self.console, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task(name, total=total, completed=done, before=done, unit=unit, note="")

            def tell(rows: int, note: str) -> None:
                progress.update(task, advance=rows, note=note)

            yield tell

    @contextmanager
    def _lines(self, name: str, total: int, done: int, unit: str) -> Iterator[Tell]:
        started = time.monotonic()
        # The speed is measured from the first rows on: before them, engines start.
        state = {"done": done, "printed": started, "since": 0.0, "base": 0}

        def say(message: str, **fields: Any) -> None:
            counts: dict[str, Any] = {f"{unit}_done": state["done"], unit: total}
            self.say(message, stage=name, **counts, **fields)

        say(f"{name}: {total - done:,} of {total:,} {unit} to do")

        def tell(rows: int, note: str) -> None:
            state["done"] += rows
            now = time.monotonic()
            if not state["since"]:
                state.update(since=now, base=state["done"])
            if now - state["printed"] >= _LINE_EVERY_S:
                state["printed"] = now
                took = now - state["since"]
                per_second = (state["done"] - state["base"]) / took if took else 0.0
                left = round((total - state["done"]) / per_second) if per_second else None
                going = "" if left is None else f", {speed(per_second, unit)}, {left:,} s left"
                say(
                    f"{name}: {state['done']:,}/{total:,} {unit}{going}" + (f"; {note}" if note else ""),
                    per_second=round(per_second, 3) if per_second else None,
                    seconds_left=left,
                    note=note or None,
                )

        yield tell
        seconds = time.monotonic() - started
        say(f"{name}: {state['done']:,}/{total:,} {unit} in {seconds:.1f} s", seconds=round(seconds, 3))
