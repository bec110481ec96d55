"""The commands of a job on a cluster: submit, status, logs, stop, list. Nothing heavy loads before use."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from routelmt_batch.cli.options import (
    AgainstOption,
    BudgetOption,
    CapOption,
    FailIfOption,
    LimitOption,
    LogFormatOption,
    MetricsPortOption,
    OutputOption,
    RetryFailedOption,
    SetOption,
    ShardsOption,
    SpecPath,
    ThresholdOption,
    TimeLimitOption,
    VerboseOption,
)
from routelmt_batch.errors import UsageError
from routelmt_batch.progress import stderr_console

if TYPE_CHECKING:
    from routelmt_batch.submission.cluster import Cluster
    from routelmt_batch.submission.submissions import Submission

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, such as http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, "
        "RAY_ADDRESS.",
    ),
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A submission's id, or its output folder: the last one of it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for name, command, example in (
        (
            "submit",
            submit,
            "submit nightly.yaml --budget 0.3 --output /corpora/out/1 --address http://head:8265",
        ),
        ("status", status, "status /corpora/out/1 --address http://head:8265"),
        ("logs", logs, "logs /corpora/out/1 --follow --address http://head:8265"),
        ("stop", stop, "stop /corpora/out/1 --address http://head:8265"),
        ("list", list_submissions, "list --address http://head:8265"),
    ):
        app.command(name, epilog=f"Example: routelmt-batch {example}")(command)


def submit(
    spec: SpecPath,
    address: UrlOption = None,
    budget: BudgetOption = None,
    output: OutputOption = None,
    threshold: ThresholdOption = None,
    cap: CapOption = None,
    settings: SetOption = None,
    limit: LimitOption = None,
    shards: ShardsOption = None,
    retry_failed: RetryFailedOption = False,
    fail_if: FailIfOption = None,
    against: AgainstOption = None,
    time_limit: TimeLimitOption = None,
    metrics_port: MetricsPortOption = None,
    log_format: LogFormatOption = "text",
    python: Annotated[
        str, typer.Option("--python", metavar="PATH", help="The Python to run with on the cluster's head.")
    ] = "python",
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the job's log, and end with its exit code.")
    ] = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="If this very job is there already, take it for the new one.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Hand a job to a Ray cluster, or go on there with one that was stopped; prints the submission's id.

    Package and spec travel; models, input, output and --against are paths as the cluster's nodes see them.
    Relative ones are made absolute here. An output that a submission waits for or works on is refused.
    """
    from routelmt_batch.interrupts import seconds
    from routelmt_batch.job.conditions import parse
    from routelmt_batch.spec.file import from_here, load
    from routelmt_batch.submission.submit import Order
    from routelmt_batch.submission.submit import submit as hand_over

    job_spec = load(
        spec,
        settings or (),
        budget_fraction=budget,
        budget_threshold=threshold,
        budget_cap=cap,
        output_uri=output,
    )
    parse(fail_if or (), against)
    if time_limit:
        seconds(time_limit)
    options = _as_given(
        limit=limit,
        shards=shards,
        retry_failed=retry_failed,
        fail_if=fail_if,
        against=from_here(against) if against else None,
        time_limit=time_limit,
        metrics_port=metrics_port,
        log_format=log_format if log_format != "text" else None,
        verbose=verbose,
    )
    cluster = _cluster(address)
    submission, new = hand_over(cluster, Order(job_spec, options, python), attach)
    typer.echo(submission.id)
    console = stderr_console()
    done = f"attempt {submission.attempt}" if new else "is there already"
    for line in (
        f"{submission.name}: {done}; {', '.join(job_spec.input.uris)} -> {submission.output}",
        f"watch: {_command('logs', submission, address)} --follow",
        f"stop:  {_command('stop', submission, address)}",
    ):
        console.print(line, soft_wrap=True)
    if wait:
        _follow(cluster, submission, address)


def _as_given(**options: object) -> tuple[str, ...]:
    """Options of `run` as its command line has them."""
    given: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            given += [flag] if value else []
        elif value is not None:
            for one in value if isinstance(value, list) else [value]:
                given += [flag, str(one)]
    return tuple(given)


def status(job: JobArgument, address: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a submission's state and, where its output can be read from here, how far it is."""
    from routelmt_batch.cli import show
    from routelmt_batch.submission import tables

    cluster, submission = _find(job, address)
    stages, why = _stages(submission), _why(cluster, submission)
    if as_json:
        told = submission.as_json() | {"message": why, "stages": stages}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
        return
    show.console().print(tables.told(submission, why))
    if stages is not None:
        show.console().print(show.stages(stages))


def logs(
    job: JobArgument,
    address: UrlOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, then end with its exit code.")
    ] = False,
) -> None:
    """Print what a submitted job printed: its progress, then its report."""
    cluster, submission = _find(job, address)
    if follow:
        _follow(cluster, submission, address)
    typer.echo(cluster.log(submission), nl=False)


def stop(job: JobArgument, address: UrlOption = None) -> None:
    """Stop a job in order: what is committed stays, and the next `submit` of it goes on from there."""
    cluster, submission = _find(job, address)
    if not submission.live:
        typer.echo(f"{submission.id} ended before: {submission.status}")
        return
    submission = cluster.stop(submission)
    typer.echo(f"{submission.id}: {submission.status}; submit it again to go on")


def list_submissions(address: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the submissions of this tool that the cluster knows, newest first."""
    from routelmt_batch.cli import show
    from routelmt_batch.submission import tables

    found = _cluster(address).submissions()
    if as_json:
        typer.echo(json.dumps([one.as_json() for one in found], ensure_ascii=False, indent=1))
    elif found:
        show.console().print(tables.listed(found))
    else:
        typer.echo("no submission there")


def _cluster(address: str | None) -> Cluster:
    from routelmt_batch.submission.cluster import VARIABLES, Cluster

    found = address or next(filter(None, map(os.environ.get, VARIABLES)), None)
    if not found:
        raise UsageError(
            "--address: give the URL of the cluster's dashboard, such as http://HEAD:8265, "
            f"or set {VARIABLES[0]}"
        )
    return Cluster(found)


def _find(job: str, address: str | None) -> tuple[Cluster, Submission]:
    from routelmt_batch.spec.file import from_here

    cluster = _cluster(address)
    return cluster, cluster.find(job, from_here(job))


def _why(cluster: Cluster, submission: Submission) -> str | None:
    """The message in the job's last line, if it did not end well."""
    if not submission.exit_code:
        return None
    for line in reversed(cluster.log(submission).splitlines()):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and "exit_code" in told:
                return told.get("message")
    return None


def _stages(submission: Submission) -> dict[str, Any] | None:
    """How far the job is; None where its output cannot be read from this machine."""
    from routelmt_batch.job import flow
    from routelmt_batch.store.workspace import Folder

    folder = Folder(Path(submission.output))
    try:
        return flow.progress(folder) if folder.read_manifest() else None
    except OSError:
        return None


def _follow(cluster: Cluster, submission: Submission, address: str | None) -> NoReturn:
    """Show a job's log to its end, and end with its exit code. Ctrl-C ends the showing alone."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        submission, whole = cluster.follow(submission, write)
    except KeyboardInterrupt:
        told = f"the job goes on; {_command('stop', submission, address)} stops it"
        stderr_console().print(told, style="yellow", soft_wrap=True)
        raise typer.Exit(130) from None
    if not whole:
        told = f"the end of its log cannot be read; {_command('logs', submission, address)} tries again"
        stderr_console().print(told, style="yellow", soft_wrap=True)
    stderr_console().print(f"{submission.id}: {submission.status}", soft_wrap=True)
    raise typer.Exit(submission.exit_code or 0)


def _command(name: str, submission: Submission, address: str | None) -> str:
    where = ["--address", address] if address else []
    return shlex.join(["routelmt-batch", name, submission.id, *where])
