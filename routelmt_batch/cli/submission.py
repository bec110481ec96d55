"""The commands for jobs on a cluster: submit, status, logs, stop, list. Heavy libraries load when used."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperGroup

from routelmt_batch.cli.options import (
    DriftOptions,
    RetryFailedOption,
    RunSpecOptions,
    ScheduleOptions,
    ScopeOptions,
    VerboseOption,
    grouped,
    host_and_port,
)
from routelmt_batch.errors import UsageError
from routelmt_batch.progress import stderr_console

if TYPE_CHECKING:
    from routelmt_batch.submission.cluster import Cluster
    from routelmt_batch.submission.progress import Progress
    from routelmt_batch.submission.submissions import Submission
    from routelmt_batch.submission.submit import Order

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
    str, typer.Argument(metavar="JOB", help="A submission's id, or an output's path or URI for its latest.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
# Options whose value is a path on the cluster's nodes, or a URI.
_PATHS = ("against",)


@dataclass(frozen=True)
class HandOverOptions:
    """Options of the hand-over alone. The command that runs on the cluster does not have them."""

    address: UrlOption = None
    plan: Annotated[bool, typer.Option("--plan", help="Run `plan` instead of `run`: score only.")] = False
    python: Annotated[
        str, typer.Option("--python", metavar="PATH", help="The Python interpreter on the cluster's head.")
    ] = "python"
    wait: Annotated[bool, typer.Option("--wait", help="Show the job's log, then exit with its code.")] = False
    attach: Annotated[
        bool, typer.Option("--attach", help="If the same job already waits or runs, use that one.")
    ] = False


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for name, command, example in (
        (
            "submit",
            submit,
            "submit nightly.yaml --budget 0.3 --output s3://corpora/out/1 --address http://head:8265",
        ),
        ("status", status, "status s3://corpora/out/1 --address http://head:8265"),
        ("logs", logs, "logs s3://corpora/out/1 --follow --address http://head:8265"),
        ("stop", stop, "stop s3://corpora/out/1 --address http://head:8265"),
        ("list", list_submissions, "list --address http://head:8265"),
    ):
        app.command(name, epilog=f"Example: routelmt-batch {example}")(command)


@grouped
def submit(
    *,
    context: typer.Context,
    spec: RunSpecOptions,
    scope: ScopeOptions,
    retry_failed: RetryFailedOption = False,
    fail: DriftOptions,
    schedule: ScheduleOptions,
    verbose: VerboseOption = False,
    hand_over: HandOverOptions,
) -> None:
    """Run a spec on a Ray cluster, or continue a stopped one there. Prints the submission's id.

    A spec for `label` or `train` is run by that command, and options that the command lacks are refused.
    The package and the spec are uploaded, but no credentials and no values of variables (`env` of pools,
    `storage`): the job takes those of the cluster's head. Models, tables, input, output, --against and
    --rates are URIs, or paths on the cluster's nodes; relative paths are made absolute here. An output is
    refused while another submission waits or runs for it.
    """
    from routelmt_batch.interrupts import seconds
    from routelmt_batch.job.conditions import parse
    from routelmt_batch.spec.variables import variables
    from routelmt_batch.submission.submit import submit as start

    order = _order(context, spec, hand_over)
    parse(fail.fail_if, fail.against, of_labels=order.command == "label")
    if schedule.time_limit:
        seconds(schedule.time_limit)
    if schedule.metrics_port is not None:
        host_and_port(schedule.metrics_port)
    cluster = _cluster(hand_over.address)
    submission, new = start(cluster, order, hand_over.attach)
    typer.echo(submission.id)
    console = stderr_console()
    done = f"attempt {submission.attempt}" if new else "already submitted"
    unsent = ", ".join(dict.fromkeys(variable.name for variable in variables(order.spec)))
    for line in (
        f"{submission.name}: {order.command}, {done}; {', '.join(order.sources)} -> {submission.output}",
        *(
            [f"not submitted: the values of {unsent}. The job takes those of the cluster's head"]
            if unsent
            else []
        ),
        f"watch: {_command('logs', submission, hand_over.address)} --follow",
        f"stop:  {_command('stop', submission, hand_over.address)}",
    ):
        console.print(line, soft_wrap=True)
    if hand_over.wait:
        _follow(cluster, submission, hand_over.address)


def _order(context: typer.Context, spec: RunSpecOptions, hand_over: HandOverOptions) -> Order:
    """What the cluster is to run: the spec, its command, and the given options of that command.

    Raises:
        SpecError: the spec cannot be read, or is not valid.
        UsageError: an option was given that the command does not have.
    """
    from routelmt_batch.files.uris import on_disk
    from routelmt_batch.learning.training.spec import TrainSpec, load_train_spec
    from routelmt_batch.spec import JobSpec, LabelSpec, SpecFile
    from routelmt_batch.spec.file import kind_of, load, load_label
    from routelmt_batch.submission.submit import Order

    loads: dict[type[SpecFile], Callable[..., JobSpec | LabelSpec | TrainSpec]] = {
        JobSpec: load,
        LabelSpec: load_label,
        TrainSpec: load_train_spec,
    }
    kind = kind_of(on_disk(spec.path, "a spec file"), loads)
    command, why = kind.command, f"{spec.path} is a spec for `{kind.command}`"
    if hand_over.plan:
        if kind is not JobSpec:
            raise UsageError(f"--plan: {why}, and only a job can be planned. Leave --plan out")
        command, why = "plan", "--plan hands over `plan`"
    options = tuple(_given(context, command, why))
    return Order(spec.read(loads[kind], runs_here=False), options, hand_over.python, hand_over.plan)


def _given(context: typer.Context, command: str, why: str) -> Iterator[str]:
    """The options given to `submit`, as arguments of the command, without those that set keys of the spec.
    Raises UsageError, with `why` it is this command, for an option that the command does not have."""
    from routelmt_batch.spec.file import from_here

    assert context.parent and isinstance(context.parent.command, TyperGroup)
    known = {parameter.name for parameter in context.parent.command.commands[command].params}
    own, in_spec = ({option.name for option in fields(group)} for group in (HandOverOptions, RunSpecOptions))
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in own or source is None or source.name != "COMMANDLINE":
            continue
        option, value = parameter.opts[0], context.params[name]
        given = []
        for item in value if isinstance(value, list) else [value]:
            text = from_here(item) if name in _PATHS else str(item)
            given += [option] if item is True else [option, text]
        if name not in known:
            raise UsageError(f"{' '.join(given)}: {why}, which has no such option. Leave it out")
        if name not in in_spec:
            yield from given


def status(job: JobArgument, address: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a submission's state and, if its output can be read from here, its progress."""
    from routelmt_batch.cli import show
    from routelmt_batch.submission import tables

    cluster, submission = _find(job, address)
    why = _why(cluster, submission)
    if not as_json:
        show.console().print(tables.details(submission, why))
    stages = _progress([submission])[submission.id].stages
    if as_json:
        state = submission.as_json() | {"message": why, "stages": stages}
        typer.echo(json.dumps(state, ensure_ascii=False, indent=1))
    elif stages is not None:
        show.console().print(show.stages(stages))


def logs(
    job: JobArgument,
    address: UrlOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until the job ends, then exit with its code.")
    ] = False,
) -> None:
    """Print a submitted job's log: its progress, then its report."""
    cluster, submission = _find(job, address)
    if follow:
        _follow(cluster, submission, address)
    typer.echo(cluster.log(submission), nl=False)


def stop(job: JobArgument, address: UrlOption = None) -> None:
    """Stop a job cleanly. Committed work stays, and the next `submit` continues from it."""
    cluster, submission = _find(job, address)
    if not submission.live:
        typer.echo(f"{submission.id} had already ended: {submission.status}")
        return
    submission = cluster.stop(submission)
    typer.echo(f"{submission.id}: {submission.status}; submit it again to continue")


def list_submissions(address: UrlOption = None, as_json: JsonOption = False) -> None:
    """List this tool's submissions on the cluster, newest first, with the progress of those that run."""
    from routelmt_batch.cli import show
    from routelmt_batch.submission import tables

    submissions = _cluster(address).submissions()
    live = _progress([each for each in submissions if each.live])
    if as_json:
        states = [
            each.as_json() | ({"stages": live[each.id].stages} if each.live else {}) for each in submissions
        ]
        typer.echo(json.dumps(states, ensure_ascii=False, indent=1))
    elif submissions:
        current = {name: found.current for name, found in live.items()}
        show.console().print(tables.listed(submissions, current))
    else:
        typer.echo("no submissions by routelmt-batch on this cluster")


def _cluster(address: str | None) -> Cluster:
    from routelmt_batch.submission.cluster import VARIABLES, Cluster

    url = address or next(filter(None, map(os.environ.get, VARIABLES)), None)
    if not url:
        raise UsageError(
            "--address: give the URL of the cluster's dashboard, such as http://HEAD:8265, "
            f"or set {VARIABLES[0]}"
        )
    return Cluster(url)


def _find(job: str, address: str | None) -> tuple[Cluster, Submission]:
    from routelmt_batch.spec.file import from_here

    cluster = _cluster(address)
    return cluster, cluster.find(job, from_here(job))


def _why(cluster: Cluster, submission: Submission) -> str | None:
    """The message in the job's last line, if its exit code is not 0."""
    if not submission.exit_code:
        return None
    for line in reversed(cluster.log(submission).splitlines()):
        with contextlib.suppress(ValueError):
            last = json.loads(line)
            if isinstance(last, dict) and "exit_code" in last:
                return last.get("message")
    return None


def _progress(submissions: list[Submission]) -> dict[str, Progress]:
    """How far some submissions are, by id. An output that cannot be read from here is a line on standard
    error, because the cluster's own status does not depend on it."""
    if not submissions:
        return {}
    from routelmt_batch.submission.progress import progress

    found = dict(zip((each.id for each in submissions), progress(submissions), strict=True))
    for name, one in found.items():
        if one.fault:
            message = f"{name}: its progress cannot be read from here: {one.fault}"
            stderr_console().print(message, style="yellow", soft_wrap=True)
    return found


def _follow(cluster: Cluster, submission: Submission, address: str | None) -> NoReturn:
    """Show a job's log to its end, then exit with its code. Ctrl-C stops only the display."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        submission, whole = cluster.follow(submission, write)
    except KeyboardInterrupt:
        message = f"the job is still running; to stop it: {_command('stop', submission, address)}"
        stderr_console().print(message, style="yellow", soft_wrap=True)
        raise typer.Exit(130) from None
    if not whole:
        message = f"the end of its log cannot be read; try again: {_command('logs', submission, address)}"
        stderr_console().print(message, style="yellow", soft_wrap=True)
    stderr_console().print(f"{submission.id}: {submission.status}", soft_wrap=True)
    raise typer.Exit(submission.exit_code or 0)


def _command(name: str, submission: Submission, address: str | None) -> str:
    where = ["--address", address] if address else []
    return shlex.join(["routelmt-batch", name, submission.id, *where])
