"""Translate: each partition of the plan by its pool; what the large model fails on, by the small.

Greedy decoding. LMT's own script searches with 5 beams; vLLM serves greedily: a named deviation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Engine, Lane
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
    TRUNCATED,
    UNTRANSLATABLE,
    Route,
)
from routelmt_batch.rows import TRANSLATIONS as SCHEMA
from routelmt_batch.spec import JobSpec, LabelSpec, Pool, Translator
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.attempts import Mask, attempts
from routelmt_batch.stages.passes import PartWriter, run_pass, tokens_of
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.work import Work, planned_rows, work_on
from routelmt_batch.stats.selection import Cut
from routelmt_batch.store import checkpoints
from routelmt_batch.store.ledger import TRANSLATIONS, Ledger, PartEntry
from routelmt_batch.store.workspace import AnyWorkspace


@dataclass(frozen=True)
class ToSend:
    """Selects the rows of a unit that are one model's to translate."""

    route: Route
    cut: Cut | None
    hypotheses: bool

    def __call__(self, work: Work) -> Mask:
        plan = planned_rows(work, self.cut)
        state = attempts(work.unit, work.committed, plan.called)
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
            schema=SCHEMA,
        )
        failed = Counter(reason for reason, text in zip(reasons, texts, strict=True) if text is None)
        skipped = len([reason for reason in reasons if reason in UNTRANSLATABLE])
        counts = {
            self.route: table.num_rows,
            f"{self.route}_failed": table.num_rows - statuses.count(OK),
            f"{self.route}_skipped": skipped,  # of those: never sent to the model
            # For whoever watches the job.
            **{f"{self.route}_failed_{reason}": rows for reason, rows in sorted(failed.items())},
            **{
                f"{self.route}_{name}": tokens_of(results, name)
                for name in ("prompt_tokens", "output_tokens")
            },
        }
        return self.part(table, counts)


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
    anything = any(_pending(workspace, plan, route) for routes in passes for route in routes)
    for routes in passes if anything else ():
        pending = {route: _pending(workspace, plan, route) for route in routes}
        lanes = [_lane(workspace, plan, route) for route in routes if pending[route]]
        total = sum(share(workspace.ledger, plan, route) for route in routes if pending[route])
        run_pass(
            workspace,
            engine,
            bars,
            "+".join(lane.label for lane in lanes),
            lanes,
            total,
            total - sum(pending.values()),
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
    return [lane(workspace, route, (), no_rows) for route in routes]


def no_rows(work: Work) -> Iterator[pa.Table]:
    """What a lane reads whose pass has not begun."""
    return iter(())


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


def share(ledger: Ledger, plan: Plan, route: Route) -> int:
    """Rows that a model has to have tried by the end, retries and fallbacks included."""
    called = plan.large + _sum(ledger, "guard", "to_large") - _sum(ledger, "guard", "to_small")
    if route == LARGE:
        return called + _sum(ledger, "retry_failed", LARGE)
    everything = plan.large + plan.small
    if plan.hypotheses:
        return everything + _sum(ledger, "retry_failed", "dead")
    own = everything - called + _sum(ledger, "guard", "escalated")
    return own + _sum(ledger, "retry_failed", SMALL) + ledger.count(TRANSLATIONS, "large_failed")


def _sum(ledger: Ledger, event: str, name: str) -> int:
    return sum(int(line[name]) for line in ledger.events_of(event))


def _pending(workspace: Job, plan: Plan, route: Route) -> int:
    ledger = workspace.ledger
    pending = share(ledger, plan, route) - ledger.count(TRANSLATIONS, route)
    if pending > 0 and route == SMALL and _sum(ledger, "guard", "escalated"):
        # An escalated row was the small model's before: if the large one fails on it, counts alone
        # have it once too often, and an engine would start for nothing.
        to_send = ToSend(route, plan.cut, plan.hypotheses)
        return sum(int(to_send(work_on(workspace, unit)).sum()) for unit in workspace.units)
    return pending


def _lane(workspace: Job, plan: Plan, route: Route) -> Lane:
    spec = workspace.spec
    guarded = next(workspace.ledger.events_of("guard"), None) is not None
    work = []
    for unit in workspace.units:
        shard = plan.shards[unit.shard.name]
        if shard.large or (shard.small and (route == SMALL or guarded)):
            work.append(work_on(workspace, unit))
    return lane(workspace, route, work, PromptReader(spec.input, ToSend(route, plan.cut, plan.hypotheses)))


def pool_of(spec: JobSpec | LabelSpec, route: Route) -> Translator:
    return spec.models.large if route == LARGE else spec.models.small


def lane(
    workspace: AnyWorkspace,
    route: Route,
    work: Sequence[Any],
    read: Callable[[Any], Iterator[pa.Table]],
    stage: str = TRANSLATIONS,
) -> Lane:
    """One model's lane: what `read` makes of `work` is translated and committed to a stage."""
    spec: JobSpec | LabelSpec = workspace.spec
    generation = workspace.ledger.generation
    pool = pool_of(spec, route)
    part = PartWriter(workspace.folder.work, stage, route, generation)
    return Lane(
        label=route,
        pool=pool,
        units=work,
        read=read,
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
    failed = ledger.count(TRANSLATIONS, "small_failed") - _sum(ledger, "retry_failed", "dead")
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
        if any(work.committed):
            called = planned_rows(work, plan.cut).called
            yield unit, called, attempts(unit, work.committed, called).dead(called)


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
