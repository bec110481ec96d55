"""A command as schedulers see it: its logs, metrics and time limit, and one last line that says how it ended.

Nothing heavy loads before it is used.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from routelmt_batch import interrupts
from routelmt_batch.errors import Interrupted, RoutelmtError
from routelmt_batch.progress import Bars, Level, counted, stderr_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from routelmt_batch.cli.exposition import JobCollector
    from routelmt_batch.cli.options import ScheduleOptions
    from routelmt_batch.job.flow import Options, Outcome
    from routelmt_batch.spec import PassSpec
    from routelmt_batch.stages.outputs import Report

AnyReport = TypeVar("AnyReport", bound="Report")
_TRACEBACK = "Traceback (most recent call last):"
_STATUS = {0: "done", 3: "done_with_failures", 4: "failed_if"}


class Ending:
    """How a command ends: its exit code, and what the last line says of its job."""

    def __init__(self, command: str, bars: Bars) -> None:
        self.bars = bars
        self.collector: JobCollector | None = None
        self.line: dict[str, Any] = {
            "job": None,
            "command": command,
            "output": None,
            "status": "done",
            "exit_code": 0,
        }

    def begin(self, name: str, output: str) -> None:
        """Say which job it is, now that its spec is read."""
        self.line |= {"job": name, "output": output}
        if self.collector:
            self.collector.begin(name, output)

    def show(self, *what: RenderableType) -> None:
        """Print for people; with JSON logs the last line is all of standard output."""
        from routelmt_batch.cli import show

        if not self.bars.as_json:
            for one in what:
                show.console().print(one, soft_wrap=isinstance(one, str))

    def end(self, exit_code: int = 0, **figures: Any) -> None:
        self.line |= {"status": _STATUS[exit_code], "exit_code": exit_code, **figures}

    def fail(self, error: BaseException) -> None:
        exit_code, level, message = in_words(error)
        kind, status = type(error).__name__, "stopped" if level == "warning" else "failed"
        self.bars.say(message, level, error=kind)
        if message.startswith(_TRACEBACK):
            message = "a defect: please report it, with what stands before this line"
        self.line |= {"status": status, "exit_code": exit_code, "error": kind, "message": message}

    def print_line(self) -> None:
        """Where a program reads it: standard output is no terminal, or logs are JSON."""
        from routelmt_batch.atomic import plain

        if self.bars.as_json or not sys.stdout.isatty():
            print(json.dumps(plain(self.line), ensure_ascii=False), flush=True)


@contextlib.contextmanager
def scheduled(command: str, options: ScheduleOptions) -> Iterator[Ending]:
    """Run what is inside as a scheduler expects: whatever ends it is told, and then the last line.

    Raises:
        typer.Exit: always, with the exit code.
    """
    ending = Ending(command, Bars(stderr_console(), as_json=options.log_format == "json"))
    interrupts.stop_on_signals()
    try:
        with contextlib.ExitStack() as open_until_then:
            open_until_then.enter_context(interrupts.time_limit(options.time_limit))
            if options.metrics_port is not None:
                from routelmt_batch.cli.exposition import JobCollector, serve

                ending.collector = JobCollector(command, ending.bars)
                open_until_then.enter_context(serve(options.metrics_port, ending.collector))
            yield ending
    except BaseException as error:
        if isinstance(error, typer.Exit) or is_exit(error):
            raise
        ending.fail(error)
    ending.print_line()
    raise typer.Exit(ending.line["exit_code"])


def is_exit(error: BaseException) -> bool:
    """Whether somebody has ended the process already, and told why."""
    # Ray's own SIGTERM handler, in the moments when it is set, exits with the signal's number.
    return isinstance(error, SystemExit) and error.code != signal.SIGTERM


def in_words(error: BaseException) -> tuple[int, Level, str]:
    """The exit code that an error ends a command with, and how to tell of it. A stop is a warning."""
    again = "Run the same command again to go on."
    if isinstance(error, Interrupted):
        return error.exit_code, "warning", f"{error}. {again}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "warning", f"stopped. {again}"
    if isinstance(error, SystemExit):  # see is_exit
        return 128 + signal.SIGTERM, "warning", f"stopped by SIGTERM. {again}"
    if isinstance(error, RoutelmtError):
        return error.exit_code, "error", str(error)
    if isinstance(error, OSError):  # a folder without permission, a disk that is gone, ...
        return 1, "error", str(error)
    return 1, "error", "".join(traceback.format_exception(error)).rstrip()  # a defect of ours


def carry_out(
    ending: Ending,
    run: Callable[..., Outcome[AnyReport]],
    spec: PassSpec,
    options: Options,
    table: Callable[[AnyReport], RenderableType],
    what: str = "this job is",
) -> None:
    """Run a job to its end and show its report as a table; `what` it is stands before "finished".

    Raises:
        RoutelmtError: see `run`, which is called as flow.run is.
    """
    from routelmt_batch.job import conditions, flow
    from routelmt_batch.store.folder import Folder

    folder = Folder(Path(spec.output.uri))
    ending.bars.say(f"{spec.name}: {folder.root} (logs: {folder.logs})")
    outcome = run(spec, options, ending.bars, partial(flow.ray_engine, options=options))
    if not outcome.new:
        ending.bars.say(f"{what} finished; nothing to do" + ("" if ending.bars.as_json else ". The report:"))
    report = outcome.report
    ending.show(table(report), f"{spec.output.uri}/data")
    if folder.page.exists():
        ending.show(str(folder.page))
    for told in _left(report):
        ending.bars.warn(told)
    ending.end(report.exit_code, report=str(folder.job_report), **report.figures)
    if options.conditions.conditions:
        triggered = conditions.triggered(report.fail_if or ())
        for told in triggered:
            ending.bars.say(f"--fail-if {told}", "error")
        ending.end(conditions.CONDITION_HELD if triggered else report.exit_code, failed_if=triggered)


def _left(report: Report) -> Iterator[str]:
    """What a done job or labels left undone, and how it is made up for."""
    from routelmt_batch.corpus.shards import alone
    from routelmt_batch.stages.job_report import JobReport

    if report.unreadable:
        yield (
            f"{counted(len(report.unreadable), 'shard')} could not be read: mended, each is a job of its "
            f"own, with {alone(next(iter(report.unreadable)))} and another --output"
        )
    if isinstance(report, JobReport) and report.failed_rows:
        yield f"{counted(report.failed_rows, 'row')} without a translation: --retry-failed tries them again"
