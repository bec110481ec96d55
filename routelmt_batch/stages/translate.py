"""Translate: each model translates its share of the plan, and the small one what the large one fails on.

Decoding is greedy, as vLLM serves it. LMT's own script uses beam search with 5 beams: a known deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from routelmt_batch.rows import (
    ENGINE_KILLED,
    ESCALATE,
    FAILED,
    FOLLOWERS,
    LARGE,
    OK,
    QUARANTINED,
    SMALL,
    TRANSLATIONS,
    TRUNCATED,
    Route,
    Stage,
)
from routelmt_batch.spec import JobSpec, LabelSpec, Pool, Translator
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.attempts import attempts
from routelmt_batch.stages.gains import Rule
from routelmt_batch.stages.passes import PartWriter, part_writer, run_pass
from routelmt_batch.stages.planned import planned_rows
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.store import checkpoints
from routelmt_batch.store.ledger import Ledger, PartEntry
from routelmt_batch.store.workspace import AnyWorkspace

# For lanes whose engines start before there is a plan.
NOT_YET_KNOWN = Pending(lambda work: np.zeros(0, bool), lambda work, wanted: iter(()))


@dataclass(frozen=True)
class ToSend:
    """Selects the rows of a unit that one model has still to translate."""

    route: Route
    rule: Rule
    hypotheses: bool

    def __call__(self, work: UnitWork) -> Mask:
        plan = planned_rows(work, self.rule)
        state = attempts(work, plan.called)
        return state.to_send(self.route, plan.called, self.hypotheses, plan.skipped)


@dataclass(frozen=True)
class TranslationWriter:
    """Commits results as translations of one model."""

    part: PartWriter
    route: Route

    def __call__(self, results: pa.Table) -> PartEntry:
        texts, statuses, reasons = [], [], []
        for result in results.select(["skip", "error", "text", "truncated"]).to_pylist():
            # A row may be too long only by this model's own tokenizer: then it fails here.
            reason = result["skip"] or result["error"] or None
            text = None if reason else result["text"].strip()
            if text is not None and result["truncated"]:
                reason = TRUNCATED
            texts.append(text)
            failure = QUARANTINED if reason == ENGINE_KILLED else FAILED
            statuses.append(failure if text is None else OK)
            reasons.append(reason)
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "route": [self.route] * results.num_rows,
                "translation": texts,
                "prompt_tokens": results["prompt_tokens"],
                "output_tokens": results["output_tokens"],
                "status": statuses,
                "reason": reasons,
            },
            schema=TRANSLATIONS.schema,
        )
        return self.part(table, results)


def translate(workspace: Job, plan: Plan, engine: Engine, bars: Bars, small_first: bool = False) -> None:
    """Translate every row that its model has not translated yet.

    Both pools run in one pass if there is room, else one after the other. Then the large one is first, so
    that the rows it fails on join the small one's share and cost no engine start. With `small_first` only
    the small model's share is translated.

    Raises:
        RoutelmtError: more than `run.max_failed_fraction` of the rows failed.
    """
    check_failures(workspace, plan, exactly=True)
    passes: list[list[Route]] = [[SMALL]] if small_first else order(workspace.spec, engine)
    for routes in passes:
        run_pass(
            workspace,
            engine,
            bars,
            [_lane(workspace, plan, route) for route in routes],
            after_commit=lambda: check_failures(workspace, plan),
        )
    check_failures(workspace, plan, exactly=True)


def upcoming(workspace: Job, engine: Engine) -> list[Lane]:
    """The lanes of the first translation pass, known before there is a plan. There are none if the guard's
    router runs first, or if translations are committed already."""
    spec = workspace.spec
    if spec.guard.mode == "predicted" or workspace.ledger.rows(TRANSLATIONS):
        return []
    small_first = spec.guard.mode != "off" or spec.guard.escalate_fraction > 0
    routes: list[Route] = [SMALL] if small_first else order(spec, engine)[0]
    return [lane(workspace, route, (), NOT_YET_KNOWN) for route in routes]


def order(spec: JobSpec | LabelSpec, engine: Engine) -> list[list[Route]]:
    """Which pools run together, and in which order. Without room for both, a cluster would wait for ever."""
    small, large = spec.models.small, spec.models.large
    if spec.run.pools == "auto":
        together = engine.has_room_for([small, large])
    else:
        together = spec.run.pools == "concurrent" and not engine.check_fit([{SMALL: small, LARGE: large}])
    return [[LARGE, SMALL], [SMALL]] if together else [[LARGE], [SMALL]]


def check_fit(spec: JobSpec | LabelSpec, engine: Engine, bars: Bars, alone: Mapping[str, Pool]) -> None:
    """Check, before a new job's first pass, that its pools can ever run; each pool in `alone` runs by itself.

    Raises:
        UsageError: this machine can never hold them. A cluster may grow, so there it is a warning.
    """
    small, large = {SMALL: spec.models.small}, {LARGE: spec.models.large}
    if spec.run.pools == "concurrent" and engine.check_fit([small | large]):
        bars.warn(
            "run.pools concurrent: the cluster has no room for both pools now. Until it has, they run one "
            "after the other"
        )
    for message in engine.check_fit([*({label: pool} for label, pool in alone.items()), small, large]):
        bars.warn(message)


def expected(ledger: Ledger, plan: Plan, route: Route) -> int:
    """For progress displays: rows that a model will have tried at the end, with retries and fallbacks."""
    called = plan.large + _sum(ledger, "guard", "to_large") - _sum(ledger, "guard", "to_small")
    if route == LARGE:
        return called + _sum(ledger, "retry_failed", LARGE)
    everything = plan.large + plan.small
    if plan.hypotheses:
        return everything + _sum(ledger, "retry_failed", "dead")
    own = everything - called + _sum(ledger, "guard", "escalated")
    fallbacks = ledger.totals(TRANSLATIONS, LARGE).unanswered.total()
    return own + _sum(ledger, "retry_failed", SMALL) + fallbacks


def _sum(ledger: Ledger, event: str, name: str) -> int:
    return sum(int(line[name]) for line in ledger.events_of(event))


def _lane(workspace: Job, plan: Plan, route: Route) -> Lane:
    pending = Pending(ToSend(route, plan.rule, plan.hypotheses), PromptReader(workspace.spec.input))
    return lane(workspace, route, [work_on(workspace, unit) for unit in workspace.units], pending)


def pool_of(spec: JobSpec | LabelSpec, route: Route) -> Translator:
    return spec.models.large if route == LARGE else spec.models.small


def lane(
    workspace: AnyWorkspace,
    route: Route,
    work: Sequence[UnitWork],
    pending: Pending,
    stage: Stage = TRANSLATIONS,
) -> Lane:
    """One model's lane: it translates the pending rows of some units and commits them to a stage."""
    spec: JobSpec | LabelSpec = workspace.spec
    generation = workspace.ledger.generation
    pool = pool_of(spec, route)
    part = part_writer(workspace.ledger, stage, route, generation)
    return Lane(
        label=route,
        pool=pool,
        units=work,
        pending=pending,
        write=TranslationWriter(part, route),
        part_rows=spec.run.part_rows,
        stage=stage,
        model=route,
        prompter=Prompter(pool.source, spec.prompt.template, pool.trust_remote_code),
        limit_tokens=pool.prompt_limit_tokens,
        retries=spec.run.retries,
        patience=spec.run.patience,
        max_output_tokens=pool.max_output_tokens,
        end_tokens=checkpoints.end_tokens(pool.source),
    )


def check_failures(workspace: Job, plan: Plan, exactly: bool = False) -> None:
    """End the job if too many rows have no translation from any model.

    Under a guard the small model also tries rows of the large one, and rows that it fails on may be
    escalated. Counts alone cannot tell which rows will still be tried; `exactly` reads the rows.

    Raises:
        RoutelmtError: more than `run.max_failed_fraction` of the rows failed.
    """
    ledger = workspace.ledger
    failed = ledger.totals(TRANSLATIONS, SMALL).unanswered.total() - _sum(ledger, "retry_failed", "dead")
    rows = plan.large + plan.small
    allowed = workspace.spec.run.max_failed_fraction * rows
    guarded = plan.hypotheses or plan.held_back
    if failed <= allowed or (guarded and not exactly and failed - plan.large - plan.held_back <= allowed):
        return
    if guarded:
        escalating = plan.held_back and not any(e["step"] == ESCALATE for e in ledger.events_of("guard"))
        failed = sum(int(dead.sum()) for *_, dead in _dead(workspace, plan))
        failed -= plan.held_back if escalating else 0
    if failed > allowed:
        raise RoutelmtError(
            f"{failed} of {rows} rows failed, more than run.max_failed_fraction "
            f"{workspace.spec.run.max_failed_fraction} allows. Find the cause in {workspace.folder.logs} and "
            "fix it; then `run --retry-failed` tries these rows again"
        )


def _dead(workspace: Job, plan: Plan) -> Iterator[tuple[UnitWork, Mask, Mask]]:
    """Each unit that has attempts or follows some, with two masks of its rows: the large model is called for
    them; no model is left to try them."""
    for unit in workspace.units:
        work = work_on(workspace, unit)
        if work.parts[TRANSLATIONS.name] or work.parts[FOLLOWERS.name]:
            called = planned_rows(work, plan.rule).called
            yield work, called, attempts(work, called).dead(called)


def reopen_failed(workspace: Job, plan: Plan) -> int:
    """Open the failed rows for another try, with their planned model first.

    Returns:
        The number of these rows.
    """
    large = small = 0
    shards = set()
    for work, called, dead in _dead(workspace, plan):
        large += int((dead & called).sum())
        small += int((dead & ~called).sum())
        followers = work.committed(FOLLOWERS, generation=work.generation)["status"]
        if dead.any() or pc.any(pc.is_in(followers, pa.array([FAILED, QUARANTINED]))).as_py():
            shards.add(work.unit.shard.name)
    if large + small:
        success = workspace.folder.success
        before = success.stat()
        workspace.ledger.record(
            "retry_failed", large=large, small=small, dead=large + small, shards=sorted(shards)
        )
        # From here on the job is not finished, by its log. A store cannot remove on a condition: there the
        # file stays until it is replaced.
        if before and not success.has_versions:
            success.remove(only=before)
    return large + small
