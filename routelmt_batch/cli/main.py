"""The commands. Errors become messages and exit codes here. Heavy libraries load only when used."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from routelmt_batch import __version__
from routelmt_batch.cli import learning as learning
from routelmt_batch.cli import submission as submission
from routelmt_batch.cli.ending import carry_out, in_words, is_exit, scheduled
from routelmt_batch.cli.options import (
    DriftOptions,
    PlanSpecOptions,
    RayOptions,
    RetryFailedOption,
    RunSpecOptions,
    ScheduleOptions,
    ScopeOptions,
    grouped,
)
from routelmt_batch.errors import OutputError, UsageError, WorkChanged
from routelmt_batch.progress import Bars, stderr_console
from routelmt_batch.sinks import open_standard
from routelmt_batch.submission.submissions import SUBMITTED

if TYPE_CHECKING:
    from routelmt_batch.stages.finished import FinishedJob

app = typer.Typer(
    name="routelmt-batch",
    help="Translate a corpus with a small and a large LLM under a budget.",
    epilog="Example: routelmt-batch run jobs/demo/job.yaml --budget 0.3",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run a command and exit with its code: 0, 1, 2, 3, 4, 124, 130 or 143."""
    open_standard()
    try:
        _check_call()
        app(standalone_mode=True)
    except BaseException as error:
        if is_exit(error):
            raise
        exit_code, level, message = in_words(error)
        Bars(stderr_console()).say(message, level)
        sys.exit(exit_code)


def _check_call() -> None:
    """Raises UsageError if an argument is not UTF-8, as reports and logs are, or if the working folder was
    removed."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument!a}: the argument is not UTF-8: give other characters") from None
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working folder was removed: change to a folder that exists") from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"routelmt-batch {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: routelmt-batch run jobs/demo/job.yaml --budget 0.2 --output runs/b20")
@grouped
def run(
    *,
    spec: RunSpecOptions,
    scope: ScopeOptions,
    retry_failed: RetryFailedOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check spec, models and input; start nothing.")
    ] = False,
    fail: DriftOptions,
    schedule: ScheduleOptions,
    ray: RayOptions,
) -> None:
    """Run or continue a job: score, allocate, translate, assemble, report.

    If it is stopped or killed, run the same command again to continue. On a finished job it does nothing.
    """
    with scheduled("run", schedule) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import flow
        from routelmt_batch.job.conditions import Conditions
        from routelmt_batch.spec.file import load

        job_spec = spec.read(load)
        ending.begin(job_spec.name, job_spec.output.uri)
        against = _finished(fail.against, "--against ") if fail.against is not None else None
        conditions = Conditions.parse(fail.fail_if, against)
        if dry_run:
            checked = flow.dry_run(job_spec, scope.shards, scope.limit, ending.bars, conditions, ray.address)
            ending.show(show.checked(checked))
            ending.end(status="checked", checked=checked)
            return
        options = flow.Options(
            **vars(scope),
            **vars(ray),
            retry_failed=retry_failed,
            conditions=conditions,
            end=ending.end_now,
        )
        carry_out(ending, flow.run, job_spec, options, show.job)


@app.command(epilog="Example: routelmt-batch plan jobs/demo/job.yaml --rates rates.yaml")
@grouped
def plan(
    *,
    spec: PlanSpecOptions,
    scope: ScopeOptions,
    schedule: ScheduleOptions,
    ray: RayOptions,
) -> None:
    """Score the rows and show what each budget would buy. `run` then continues with any budget."""
    with scheduled("plan", schedule) as ending:
        from routelmt_batch.cli import show
        from routelmt_batch.job import flow, rates
        from routelmt_batch.spec.file import load
        from routelmt_batch.stages.allocate import is_begun
        from routelmt_batch.store.folder import Folder

        job_spec = spec.read(load)
        ending.begin(job_spec.name, job_spec.output.uri)
        rates_file = job_spec.budget.rates
        measured = rates.load(rates_file, job_spec) if rates_file is not None else None
        options = flow.Options(**vars(scope), **vars(ray), end=ending.end_now)
        lines = flow.plan(job_spec, options, ending.bars, partial(flow.ray_engine, options=options))
        estimates = [rates.estimate(measured, job_spec, line) for line in lines] if measured else []
        folder, hint = Folder.at(job_spec.output.uri), _next_step()
        if is_begun(folder, folder.ledger()):
            hint = (
                "Its budget is frozen: rows were translated under it. Another budget needs another --output"
            )
        ending.show(show.what_if(lines, job_spec.budget.measure, estimates), hint)
        shown = [line.as_json() for line in lines]
        for line, estimate in zip(shown, estimates, strict=bool(estimates)):
            line |= vars(estimate)
        ending.end(budgets=shown)


def _next_step() -> str:
    """The next step after a plan."""
    if os.environ.get(SUBMITTED):
        return "Next: submit it again, with --budget P instead of --plan"
    from routelmt_batch.spec.variables import without_value

    run_command = shlex.join(["routelmt-batch", "run", *map(without_value, sys.argv[2:])])
    return f"Next: {run_command} --budget P"


@app.command(epilog="Example: routelmt-batch report runs/demo")
def report(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A job's output folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    as_rates: Annotated[
        bool, typer.Option("--rates", help="Print its pools' measured rates as a file for `plan --rates`.")
    ] = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="OTHER", help="Compare with another finished job.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write the audit page, reports/index.html, and print its path.")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option("--rows", metavar="N", min=0, help="Rows of each kind on the page; page.rows."),
    ] = None,
) -> None:
    """Show the report of a finished job or of labels, or the progress of an unfinished one. Or compare two
    jobs."""
    from routelmt_batch.cli import show
    from routelmt_batch.job import flow, rates
    from routelmt_batch.learning.labelling import label
    from routelmt_batch.learning.labelling.label_report import LabelReport
    from routelmt_batch.stages.job_report import JobReport
    from routelmt_batch.store.folder import Folder

    if rows is not None and not html:
        raise UsageError("--rows: needs --html; add --html or leave --rows out")
    if html or against is not None:
        _audit(output, against, html, rows, as_json)
        return
    folder = Folder.at(output)
    labels = folder.manifest_of_job()["command"] == "label"
    kind: type[LabelReport | JobReport] = LabelReport if labels else JobReport
    finished = kind.finished(folder)
    if as_rates:
        if not isinstance(finished, JobReport):
            raise OutputError(f"{output}: has no rates; give the output of a finished job, not of labels")
        typer.echo(rates.measured(finished), nl=False)
        return
    if not finished:
        try:
            folder.refuse_lost()
        except WorkChanged as lost:  # a run may be writing it again, so its progress is shown, too
            Bars(stderr_console()).warn(str(lost))
    state = finished.as_json() if finished else (label if labels else flow).unfinished(folder)
    if as_json:
        typer.echo(json.dumps(state, ensure_ascii=False, indent=1))
    elif isinstance(finished, JobReport):
        show.console().print(show.job(finished))
    else:
        show.console().print(show.labels(finished) if finished else show.unfinished(state))


def _audit(output: str, against: str | None, html: bool, rows: int | None, as_json: bool) -> None:
    """Write the audit page, or print a comparison, which contains no corpus text.

    Raises:
        OutputError: a folder holds no finished job.
    """
    from routelmt_batch.cli import show
    from routelmt_batch.page.comparison import compare
    from routelmt_batch.page.page import write_page

    this, other = _finished(output), _finished(against, "--against ") if against is not None else None
    settings = this.spec.page if rows is None else this.spec.page.model_copy(update={"rows": rows})
    comparison = compare(this, other, settings.rows if html else 0) if other else None
    if html:
        write_page(this, settings, comparison)
        typer.echo(this.folder.page)
    elif as_json:
        typer.echo(json.dumps(comparison, ensure_ascii=False, indent=1))
    elif comparison:
        show.console().print(show.comparison(comparison))


def _finished(output: str, option: str = "") -> FinishedJob:
    from routelmt_batch.stages.finished import FinishedJob
    from routelmt_batch.store.folder import Folder

    folder = Folder.at(output)
    if not folder.is_finished():
        folder.refuse_lost()
        raise OutputError(f"{option}{output}: no finished job there; give the output of one")
    return FinishedJob.read(folder)


@app.command(epilog="Example: routelmt-batch clean runs/demo --dry-run")
def clean(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A finished job's output folder.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove the work files (in `_job/`) of a finished job or of labels. Data, reports, audit page and
    comparisons stay, but failed rows can no longer be retried."""
    from routelmt_batch import interrupts
    from routelmt_batch.cli import show
    from routelmt_batch.job import clean as cleaning
    from routelmt_batch.store.folder import Folder

    interrupts.stop_on_signals()
    folder = Folder.at(output)
    cleaned = cleaning.to_remove(folder) if dry_run else cleaning.clean(folder, Bars(stderr_console()))
    show.console().print(show.cleaned(cleaned, dry_run))


@app.command(epilog="Example: routelmt-batch verify runs/demo")
def verify(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The output of a job or of labels.")],
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Mend what the committed work suffices for, and say what was done; then check again.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Check all that a job or labels wrote: log, manifest, committed parts, plan, output shards, reports.

    It names what is damaged, what is lost and what to do, and ends with 1 if there is damage. Without
    --rebuild it changes nothing.
    """
    from routelmt_batch import interrupts
    from routelmt_batch.cli import show
    from routelmt_batch.job import rebuild as rebuilding
    from routelmt_batch.job import verify as verifying
    from routelmt_batch.learning.labelling.label_report import LabelReport
    from routelmt_batch.spec import JobSpec, LabelSpec
    from routelmt_batch.stages.job_report import JobReport
    from routelmt_batch.store.folder import Folder

    interrupts.stop_on_signals()
    folder, bars = Folder.at(output), Bars(stderr_console())
    kinds: verifying.Kinds = {JobSpec: JobReport, LabelSpec: LabelReport}
    found = verifying.verify(folder, kinds, bars)
    mended = rebuilding.rebuild(found, bars) if rebuild else []
    if mended:
        found = verifying.verify(folder, kinds, bars)
    if as_json:
        typer.echo(json.dumps({**found.as_json(), "mended": mended}, ensure_ascii=False, indent=1))
    else:
        show.console().print(show.verified(found, mended), soft_wrap=True)
    raise typer.Exit(1 if found.damaged else 0)


@app.command(epilog="Example: routelmt-batch doctor")
def doctor() -> None:
    """Check this machine: Python, Ray, vLLM, GPU or CPU, memory, disk. Each fault comes with a fix."""
    from routelmt_batch.cli import doctor as checks
    from routelmt_batch.cli import show

    lines = checks.examine()
    show.console().print(show.health(lines))
    raise typer.Exit(0 if all(line.fine for line in lines) else 1)


@app.command(epilog="Example: routelmt-batch init --kind label labels.yaml")
def init(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="Where to write the spec; default: job.yaml, label.yaml, train.yaml."
        ),
    ] = None,
    kind: Annotated[
        Literal["run", "label", "train"], typer.Option("--kind", help="The command that the spec is for.")
    ] = "run",
) -> None:
    """Write a commented spec to start from, for a job, for labels or for training a router."""
    from routelmt_batch.files.uris import on_disk

    path = path or ("job.yaml" if kind == "run" else f"{kind}.yaml")
    target = on_disk(path, "a spec file")
    starter = Path(__file__).parent / "starters" / f"{kind}.yaml"
    try:
        if target.exists():
            raise UsageError(f"{path}: already exists; give another name")
        target.write_text(starter.read_text(encoding="utf8"), encoding="utf8")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); give a name in a folder that exists"
        ) from None
    check = " --dry-run" if kind == "run" else ""
    typer.echo(f"wrote {path}; edit it, then: routelmt-batch {kind} {path}{check}")


learning.add_to(app)
submission.add_to(app)
