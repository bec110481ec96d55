"""Translate: each partition of the plan by its pool; what the large model fails on, by the small.

Greedy decoding. LMT's own script searches with 5 beams; vLLM serves greedily: a named deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from routelmt_batch.rows import (
    ENGINE_KILLED,
    ESCALATE,
    FAILED,
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
from routelmt_batch.stages.passes import PartWriter, run_pass
from routelmt_batch.stages.planned import planned_rows
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.stats.selection import Cut
from routelmt_batch.store import checkpoints
from routelmt_batch.store.ledger import Ledger, PartEntry
from routelmt_batch.store.workspace import AnyWorkspace

# Of lanes whose engines start before there is a plan.
NOT_YET_KNOWN = Pending(lambda work: np.zeros(0, bool), lambda work, wanted: iter(()))


@dataclass(frozen=True)
class ToSend:
    """Selects the rows of a unit that are one model's to translate."""

    route: Route
    cut: Cut | None
    hypotheses: bool

    def __call__(self, work: UnitWork) -> Mask:
        plan = planned_rows(work, self.cut)
        state = attempts(work, plan.called)
        return state.to_send(self.route, plan.called, self.hypotheses, plan.skipped)


@dataclass(frozen=True)
class Writer:
    """Commits results as translations of one model."""

    part: PartWriter
    route: Route

    def __call__(self, results: pa.Table) -> PartEntry:
        texts, statuses, reasons = [], [], []
        for result in results.select(["skip", "error", "text", "truncated"]).to_pylist():
            # A row can be too long for this model's own tokenizer alone: it fails here.
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
    """Send every row that has no committed translation of its model to its pool.

    The pools run as one pass where there is room for both, else one after the other, the large one
    first: what it fails on then goes with the small one's share and costs no engine start. With
    `small_first` the small model's share is translated alone, and nothing else.

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
    """The first lanes that translate, before there is a plan. None where the guard's own router comes first,
    or where all is translated."""
    spec = workspace.spec
    if spec.guard.mode == "predicted" or workspace.ledger.rows(TRANSLATIONS):
        return []
    small_first = spec.guard.mode != "off" or spec.guard.escalate_fraction > 0
    routes: list[Route] = [SMALL] if small_first else order(spec, engine)[0]
    return [lane(workspace, route, (), NOT_YET_KNOWN) for route in routes]


def order(spec: JobSpec | LabelSpec, engine: Engine) -> list[list[Route]]:
    """Which pools run together, and in which order. A cluster without room for both would wait for ever."""
    small, large = spec.models.small, spec.models.large
    if spec.run.pools == "auto":
        together = engine.has_room_for([small, large])
    else:
        together = spec.run.pools == "concurrent" and not engine.check_fit([{SMALL: small, LARGE: large}])
    return [[LARGE, SMALL], [SMALL]] if together else [[LARGE], [SMALL]]


def check_fit(spec: JobSpec | LabelSpec, engine: Engine, bars: Bars, alone: Mapping[str, Pool]) -> None:
    """Before a new job pays for its first pass: could its pools ever run? Those `alone` run beside no other.

    Raises:
        UsageError: this machine can never hold them; of a cluster, which may grow, it is a warning.
    """
    small, large = {SMALL: spec.models.small}, {LARGE: spec.models.large}
    if spec.run.pools == "concurrent" and engine.check_fit([small | large]):
        bars.warn(
            "run.pools concurrent: the cluster has no room for both pools now; as long as that is so, they "
            "run one after the other"
        )
    for message in engine.check_fit([*({label: pool} for label, pool in alone.items()), small, large]):
        bars.warn(message)


def expected(ledger: Ledger, plan: Plan, route: Route) -> int:
    """For whoever watches: rows that a model has to have tried by the end, with retries and fallbacks."""
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
    pending = Pending(ToSend(route, plan.cut, plan.hypotheses), PromptReader(workspace.spec.input))
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
    """One model's lane: what is pending of some units is translated and committed to a stage."""
    spec: JobSpec | LabelSpec = workspace.spec
    generation = workspace.ledger.generation
    pool = pool_of(spec, route)
    part = PartWriter(workspace.folder.work, stage, route, generation)
    return Lane(
        label=route,
        pool=pool,
        units=work,
        pending=pending,
        write=Writer(part, route),
        part_rows=spec.run.part_rows,
        stage=stage,
        model=route,
        prompter=Prompter(pool.source, spec.prompt.template, pool.trust_remote_code),
        limit_tokens=pool.prompt_limit_tokens,
        retries=spec.run.retries,
        max_output_tokens=pool.max_output_tokens,
        end_tokens=checkpoints.end_tokens(pool.source),
    )


def check_failures(workspace: Job, plan: Plan, exactly: bool = False) -> None:
    """End the job when too many rows have no translation from any model.

    Under a guard the small model also tries rows of the large one, and what it fails on may be
    escalated: counts alone say only what nobody can mend. `exactly` looks at the rows.
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
            f"{workspace.spec.run.max_failed_fraction} allows. Look into {workspace.folder.logs}; after "
            "mending, `run --retry-failed` tries them again"
        )


def _dead(workspace: Job, plan: Plan) -> Iterator[tuple[Unit, Mask, Mask]]:
    """Units with rows that were tried: those that the large model is called for, those that no model is
    left for."""
    for unit in workspace.units:
        work = work_on(workspace, unit)
        if work.parts[TRANSLATIONS.name]:
            called = planned_rows(work, plan.cut).called
            yield unit, called, attempts(work, called).dead(called)


def reopen_failed(workspace: Job, plan: Plan) -> int:
    """Open the failed rows for another try, with their planned model first.

    Returns:
        How many rows.
    """
    large = small = 0
    shards = set()
    for unit, called, dead in _dead(workspace, plan):
        large += int((dead & called).sum())
        small += int((dead & ~called).sum())
        if dead.any():
            shards.add(unit.shard.name)
    if shards:
        workspace.folder.success.unlink(missing_ok=True)
        workspace.ledger.record(
            "retry_failed", large=large, small=small, dead=large + small, shards=sorted(shards)
        )
    return large + small
