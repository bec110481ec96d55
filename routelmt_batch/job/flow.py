"""The main job, in order: fold, reuse, score, allocate, guard, translate, check, assemble, audit, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from routelmt_batch.corpus.units import Unit, units
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.engines.nodes import check_nodes, processors
from routelmt_batch.errors import OutputError, RoutelmtError
from routelmt_batch.files.write import kept_folder
from routelmt_batch.interrupts import end_now, stop_on_signals
from routelmt_batch.job.conditions import NO_CONDITIONS, Conditions
from routelmt_batch.page.page import write_page
from routelmt_batch.progress import Bars, counted
from routelmt_batch.rows import LARGE, SCORES, SMALL, TRANSLATIONS
from routelmt_batch.spec import Guard, JobSpec, Pool
from routelmt_batch.spec.dtypes import Choice, settle
from routelmt_batch.spec.values import amount_of
from routelmt_batch.stages.allocate import (
    allocate,
    guard_words,
    make_plan,
    read_plan,
    refuse_other_budget,
)
from routelmt_batch.stages.assemble import assemble
from routelmt_batch.stages.audit import audit, audit_is_due
from routelmt_batch.stages.check import check as check_texts
from routelmt_batch.stages.check import checks_came_late, checks_pool
from routelmt_batch.stages.earlier import named
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.fold import fold
from routelmt_batch.stages.gains import skipped_rows
from routelmt_batch.stages.guard import guard, verify
from routelmt_batch.stages.job_report import JobReport, WhatIf
from routelmt_batch.stages.memory import remember
from routelmt_batch.stages.outputs import current_outputs, succeed
from routelmt_batch.stages.recipe import Job, JobRecipe, check_models
from routelmt_batch.stages.report import report
from routelmt_batch.stages.reuse import reuse
from routelmt_batch.stages.score import score
from routelmt_batch.stages.skips import check_codes, refuse_skipped
from routelmt_batch.stages.translate import check_fit, expected, reopen_failed, translate, upcoming
from routelmt_batch.stats.selection import places
from routelmt_batch.store.beforehand import check_space
from routelmt_batch.store.begun import Begun, settled, take
from routelmt_batch.store.folder import Folder, check_output
from routelmt_batch.store.log import TakenOver
from routelmt_batch.store.workspace import find_input, open_workspace, refuse_cleaned
from routelmt_batch.threads import Each, each


@dataclass(frozen=True)
class Options:
    """A run's options that are not in its spec."""

    limit: int | None = None
    shards: str | None = None
    retry_failed: bool = False
    address: str | None = None
    verbose: bool = False
    conditions: Conditions = NO_CONDITIONS
    end: Callable[[RoutelmtError], None] = end_now  # ends a process in which something hangs


Report = TypeVar("Report", covariant=True)


@dataclass(frozen=True)
class Outcome(Generic[Report]):
    """A job's report, and whether this run wrote it or found it finished."""

    report: Report
    new: bool


# Opens the engine of a job, given the job's folder; the job runs inside it.
OpenEngine = Callable[[Folder], AbstractContextManager[Engine]]


def run(spec: JobSpec, options: Options, bars: Bars, open_engine: OpenEngine) -> Outcome[JobReport]:
    """Run a job to its end, from the beginning or from its committed work.

    Raises:
        RoutelmtError: see errors. Committed work stays, and the same command continues the job.
    """
    with _open(spec, options, bars, open_engine) as (workspace, engine):
        done = JobReport.finished(workspace.folder)
        workspace.ledger.refresh()
        refuse_cleaned(workspace, done, _needs_work_files(workspace, done, options))
        if done:
            plan = allocate(workspace)  # refuses another budget
            retry = options.retry_failed and not workspace.ledger.cleaned
            if not (retry and reopen_failed(workspace, plan)) and not audit_is_due(workspace, done):
                if checks_came_late(workspace):
                    bars.warn(
                        "checks.enabled: this job was finished without checks, and none are added now; to "
                        "have them, start a new job with another --output"
                    )
                return Outcome(
                    options.conditions.judge(workspace.folder, done, workspace.ledger.check), new=False
                )
        if workspace.ledger.rows(SCORES) < workspace.calls:
            check_fit(spec, engine, bars, _alone(workspace.recipe))
            check_space(workspace.folder.root, workspace.shards, options.limit, bars)
            _check_languages(workspace.recipe, workspace.units, bars, engine.each)
        fold(workspace, engine, bars)
        reuse(workspace, engine, bars)
        score(workspace, engine, bars, upcoming=partial(upcoming, workspace, engine))
        refuse_skipped(workspace, skipped_rows(workspace), workspace.rows)
        plan = allocate(workspace)
        if options.retry_failed and not done:
            reopen_failed(workspace, plan)
        guard(workspace, plan, engine, bars)
        translate(workspace, plan, engine, bars)
        check_texts(workspace, [SMALL, LARGE], engine, bars)
        verify(workspace, plan, engine, bars)
        assemble(workspace, plan, engine, bars)
        audit(workspace, plan, engine, bars)
        remember(workspace, engine, bars)
        reported = report(workspace, plan, engine)
        _draw_page(workspace, bars)
        succeed(workspace)
        judged = options.conditions.judge(workspace.folder, reported, workspace.ledger.check)
        return Outcome(judged, new=True)


def _needs_work_files(workspace: Job, done: JobReport | None, options: Options) -> str | None:
    """The option of this run that needs the work files of a finished job."""
    if done and options.retry_failed and done.failed_rows:
        return "--retry-failed"
    return "an audit (audit.fraction)" if done and audit_is_due(workspace, done) else None


def _draw_page(workspace: Job, bars: Bars) -> None:
    """Write the audit page. The job is complete without it, so an error is only a warning."""
    try:
        write_page(FinishedJob.read(workspace.folder), workspace.spec.page, check=workspace.ledger.check)
    except TakenOver:
        raise
    except Exception as error:  # its message is left out, because it may quote the corpus
        bars.warn(
            f"the audit page was not written ({type(error).__name__}); the job is complete without it. "
            f"`routelmt-batch report {workspace.folder.root} --html` writes it, or shows the error"
        )


def _alone(recipe: JobRecipe) -> dict[str, Pool]:
    """Pools that run while no other pool runs, by their key in the spec."""
    pools: dict[str, Pool] = {"router": recipe.router.pool}
    if recipe.quality_router:
        pools["guard.router"] = recipe.quality_router.pool
    if recipe.metric and recipe.spec.metric:
        pools["metric"] = recipe.spec.metric
    if recipe.spec.checks.enabled:
        pools["checks"] = checks_pool(recipe.spec.checks)
    return pools


@contextmanager
def _open(
    spec: JobSpec, options: Options, bars: Bars, open_engine: OpenEngine
) -> Iterator[tuple[Job, Engine]]:
    with take(spec, bars) as begun, open_engine(begun.folder) as engine:
        check_nodes(options.address)
        spec, dtypes = settled(spec, begun, bars, partial(processors, options.address))
        recipe = check_models(spec, bars)
        options.conditions.check(recipe, begun.folder)
        found = begun, recipe, bars, options.shards, options.limit, dtypes
        yield open_workspace(*found, engine.each), engine


def plan(spec: JobSpec, options: Options, bars: Bars, open_engine: OpenEngine) -> list[WhatIf]:
    """Score the rows, and return what each budget would buy. Only the scores are committed."""
    with _open(spec, options, bars, open_engine) as (workspace, engine):
        if workspace.ledger.cleaned:
            raise OutputError(
                f"{workspace.folder.root}: `clean` removed its scores. What each budget would have bought is "
                "on its audit page, and in reports/job.json under `budgets`"
            )
        if workspace.ledger.rows(SCORES) < workspace.calls:
            _check_languages(workspace.recipe, workspace.units, bars, engine.each)
            fold(workspace, engine, bars)
            reuse(workspace, engine, bars)
            score(workspace, engine, bars)
        return make_plan(workspace).budgets


def _check_languages(recipe: JobRecipe, units: Iterable[Unit], bars: Bars, spread: Each = each) -> None:
    """Warn of codes and directions before any expensive work; the report repeats them. See check_codes."""
    found = check_codes(recipe.spec, units, bars, spread)
    for warning in recipe.router.doubts("router", sorted(found.directions)):
        bars.warn(warning)


def dry_run(
    spec: JobSpec,
    only: str | None,
    limit: int | None,
    bars: Bars,
    conditions: Conditions = NO_CONDITIONS,
    address: str | None = None,
) -> dict[str, Any]:
    """What a run would do, after every check of a run. Nothing is started or written.

    Raises:
        UsageError: as a run would.
    """
    folder = Folder.at(spec.output.uri)
    check_output(folder, spec)
    begun = Begun.read(folder)
    check_nodes(address)
    spec, _, choices = settle(spec, begun.dtypes(), partial(processors, address))
    recipe = check_models(spec, bars)
    conditions.check(recipe, folder)
    revisions = begun.revisions(spec.input.uris)
    shards, unreadable = find_input(spec, only, limit, begun.known_shards(), bars, revisions)
    begun.check(spec.command, shards, recipe.fingerprints(shards, limit), bars)
    refuse_other_budget(folder, begun.ledger, recipe)
    rows = sum(unit.rows for unit in units(shards, limit))
    if begun.ledger.rows(SCORES) < rows - begun.ledger.folded_rows:
        check_space(folder.root, shards, limit, bars)
        _check_languages(recipe, units(shards, limit), bars)
    return {
        "input": f"{counted(rows, 'row')} in {counted(len(shards), 'shard')} of "
        + ", ".join(revisions.get(uri, uri) for uri in spec.input.uris),
        **{f"unreadable {name}": reason for name, reason in unreadable.items()},
        "small": spec.models.small.source,
        "large": spec.models.large.source,
        "router": recipe.router.describe(),
        "dtype": _dtypes(spec, choices),
        "budget": _budget(recipe, rows),
        **_reused(spec, folder, bars),
        **_measured(recipe),
        "longest prompt": f"{recipe.prompt_limit_tokens} tokens",
        "output": f"{spec.output.uri} ({_state(folder, begun)})",
    }


def _dtypes(spec: JobSpec, choices: Sequence[Choice]) -> str:
    pools = {"router": spec.router, SMALL: spec.models.small, LARGE: spec.models.large}
    shown = ", ".join(f"{name} {pool.dtype}" for name, pool in pools.items())
    return shown + "".join(f" ({reason})" for reason in dict.fromkeys(choice.reason for choice in choices))


def _reused(spec: JobSpec, folder: Folder, bars: Bars) -> dict[str, str]:
    """The jobs that a new job would take scores and translations from, if its spec names any."""
    if spec.reuse is None:
        return {}
    return {"reuse": ", ".join(str(job.root) for job in named(spec.reuse, folder, bars)) or "nothing"}


def _measured(recipe: JobRecipe) -> dict[str, str]:
    """Guard, audit and metric, if the spec has them."""
    spec, settings = recipe.spec, {}
    if spec.guard != Guard():
        settings["guard"] = guard_words(spec.guard).replace("guard.", "")
    if spec.audit.fraction:
        settings["audit"] = f"{spec.audit.fraction} of the rows, at least {spec.audit.min_rows:,}"
    if recipe.metric:
        settings["metric"] = recipe.metric.name
    return settings


def _budget(recipe: JobRecipe, rows: int) -> str:
    budget, at_least = recipe.spec.budget, recipe.at_least
    if at_least is None and recipe.spending:
        of = f"{budget.fraction} of what all rows cost, in {budget.measure}"
        return f"{budget.amount or of}; the highest gain per cost to large first"
    if budget.amount is not None:
        return f"{budget.amount}: at most {min(int(amount_of(budget.amount)[0]), rows):,} calls to large"
    if at_least is None:
        assert budget.fraction is not None
        return f"{budget.fraction}: at most {places(budget.fraction, rows):,} calls to large"
    cap = "" if budget.cap is None else f", at most {places(budget.cap, rows):,}"
    return f"rows with a score of at least {at_least:g} to large{cap}"


def _state(folder: Folder, begun: Begun) -> str:
    if begun.ledger.log.holder:
        return "another run holds it"
    if folder.is_finished():
        return "finished: a run would do nothing"
    return f"continues: {begun.ledger.rows(SCORES):,} rows scored" if begun.manifest else "new"


def unfinished(folder: Folder) -> dict[str, Any]:
    """An unfinished job's progress, and whether a process works on it."""
    return {
        "finished": False,
        "running": folder.ledger().log.holder is not None,
        "command": "run",
        "stages": progress(folder),
    }


def progress(folder: Folder) -> dict[str, list[int]]:
    """A job's progress by stage, `[done, total]`, from its ledger."""
    ledger, (shards, rows) = folder.ledger(), folder.extent()
    stages = {"score": [ledger.rows(SCORES), rows - ledger.folded_rows]}
    if folder.plan.exists():
        plan = read_plan(folder.plan)
        for route in (LARGE, SMALL):
            stages[f"translate {route}"] = [ledger.rows(TRANSLATIONS, route), expected(ledger, plan, route)]
        stages["assemble"] = [len(current_outputs(ledger)), shards]
    return stages


@contextmanager
def ray_engine(folder: Folder, options: Options) -> Iterator[Engine]:
    """Pools in a Ray session that ends with the job."""
    from routelmt_batch.engines.pools import Pools
    from routelmt_batch.engines.session import Session

    with (
        kept_folder(folder.logs) as logs,
        Session(logs, options.address, options.verbose, stop_on_signals, options.end) as session,
    ):
        pools = Pools(session)
        try:
            yield pools
        finally:
            pools.dismiss()
