"""What a command offers to a scheduler: logs, metrics, a time limit, and a last line about how it ended.

Heavy libraries load only when they are used.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from routelmt_batch import interrupts
from routelmt_batch.cli.options import host_and_port
from routelmt_batch.errors import Interrupted, RoutelmtError
from routelmt_batch.progress import Bars, Level, counted, stderr_console
from routelmt_batch.sinks import spare_standard_output

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
    """The end of a command: its exit code and its last line, a JSON object about its job."""

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
        """Record the job's name and output, which are known once its spec is read."""
        self.line |= {"job": name, "output": output}
        if self.collector:
            self.collector.begin(name, output)

    def show(self, *parts: RenderableType) -> None:
        """Print for people. With JSON logs it prints nothing: standard output gets only the last line."""
        from routelmt_batch.cli import show

        if not self.bars.as_json:
            for part in parts:
                show.console().print(part, soft_wrap=isinstance(part, str))

    def end(self, exit_code: int = 0, **figures: Any) -> None:
        self.line |= {"status": _STATUS[exit_code], "exit_code": exit_code, **figures}

    def fail(self, error: BaseException) -> None:
        exit_code, level, message = in_words(error)
        kind, status = type(error).__name__, "stopped" if level == "warning" else "failed"
        self.bars.say(message, level, error=kind)
        if message.startswith(_TRACEBACK):
            message = "a bug in routelmt-batch: please report it with the traceback on standard error"
        self.line |= {"status": status, "exit_code": exit_code, "error": kind, "message": message}

    def end_now(self, error: RoutelmtError) -> None:
        """Fail, and end the process at once, from any thread: something in it hangs."""
        self.fail(error)
        self.bars.console.show_cursor()
        self.print_line()
        os._exit(error.exit_code)

    def print_line(self) -> None:
        """Print the last line if a program reads it: logs are JSON, or standard output is not a terminal."""
        from routelmt_batch.files.write import plain

        if self.bars.as_json or not sys.stdout.isatty():
            print(json.dumps(plain(self.line), ensure_ascii=False), flush=True)


@contextlib.contextmanager
def scheduled(command: str, options: ScheduleOptions) -> Iterator[Ending]:
    """Run the body as a scheduler expects: log the error that ends it, then print the last line.

    Raises:
        typer.Exit: always, with the exit code.
    """
    ending = Ending(command, Bars(stderr_console(), as_json=options.log_format == "json"))
    interrupts.stop_on_signals()
    spare_standard_output()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(interrupts.time_limit(options.time_limit))
            if options.metrics_port is not None:
                from routelmt_batch.cli.exposition import JobCollector, serve

                host, port = host_and_port(options.metrics_port)
                ending.collector = JobCollector(command, ending.bars)
                stack.enter_context(serve(host, port, ending.collector))
            yield ending
    except BaseException as error:
        if isinstance(error, typer.Exit) or is_exit(error):
            raise
        ending.fail(error)
    ending.print_line()
    raise typer.Exit(ending.line["exit_code"])


def is_exit(error: BaseException) -> bool:
    """Whether the error is an exit whose reason was already reported."""
    # Ray's SIGTERM handler, while it is installed, exits with the signal's number and reports nothing.
    return isinstance(error, SystemExit) and error.code != signal.SIGTERM


def in_words(error: BaseException) -> tuple[int, Level, str]:
    """The exit code, level and message for an error that ended a command. A stop is a warning."""
    again = "Run the same command again to continue."
    if isinstance(error, Interrupted):
        return error.exit_code, "warning", f"{error}. {again}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "warning", f"stopped. {again}"
    if isinstance(error, SystemExit):  # see is_exit
        return 128 + signal.SIGTERM, "warning", f"stopped by SIGTERM. {again}"
    if isinstance(error, RoutelmtError):
        return error.exit_code, "error", str(error)
    if isinstance(error, OSError):  # no permission for a folder, a lost disk, ...
        return 1, "error", str(error)
    return 1, "error", "".join(traceback.format_exception(error)).rstrip()  # a bug of ours


def carry_out(
    ending: Ending,
    run: Callable[..., Outcome[AnyReport]],
    spec: PassSpec,
    options: Options,
    table: Callable[[AnyReport], RenderableType],
    what: str = "this job is",
) -> None:
    """Run a job to its end and show its report as a table. `what` begins the message on a finished job.

    Raises:
        RoutelmtError: see `run`, which takes the arguments of flow.run.
    """
    from routelmt_batch.job import conditions, flow
    from routelmt_batch.store.folder import Folder

    folder = Folder.at(spec.output.uri)
    ending.bars.say(f"{spec.name}: {folder.root} (logs: {folder.logs})")
    outcome = run(spec, options, ending.bars, partial(flow.ray_engine, options=options))
    if not outcome.new:
        ending.bars.say(f"{what} finished; nothing to do" + ("" if ending.bars.as_json else ". The report:"))
    report = outcome.report
    ending.show(table(report), f"{spec.output.uri}/data")
    if folder.page.exists():
        ending.show(str(folder.page))
    for warning in _left(report):
        ending.bars.warn(warning)
    ending.end(report.exit_code, report=str(folder.job_report), **report.figures)
    if options.conditions.conditions:
        triggered = conditions.triggered(report.fail_if or ())
        for condition in triggered:
            ending.bars.say(f"--fail-if {condition}", "error")
        ending.end(conditions.CONDITION_HELD if triggered else report.exit_code, failed_if=triggered)


def _left(report: Report) -> Iterator[str]:
    """A warning for each kind of rows that a finished job left out, with the remedy."""
    from routelmt_batch.corpus.shards import alone
    from routelmt_batch.stages.job_report import JobReport

    if report.unreadable:
        yield (
            f"{counted(len(report.unreadable), 'shard')} could not be read: repair each and run it as a "
            f"separate job, with {alone(next(iter(report.unreadable)))} and another --output"
        )
    if isinstance(report, JobReport) and report.failed_rows:
        yield f"{counted(report.failed_rows, 'row')} without a translation: --retry-failed tries them again"
