"""Guard: it saves planned calls to the large model, gives their places to other rows, and escalates rows.

The plan itself does not change. The guard's changes are recorded as decisions: parts that are committed
together and never made again. Calls to the large model never exceed the budget's places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import Scale
from routelmt_batch.rows import ESCALATE, LARGE, PREDICTED, QUALITY, ROUTE, SMALL, Route
from routelmt_batch.stages import measure
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.check import check
from routelmt_batch.stages.decisions import decide_escalations, decide_routes, decided
from routelmt_batch.stages.gains import CommittedGains, Rule
from routelmt_batch.stages.measure import unmeasured
from routelmt_batch.stages.passes import part_writer, run_pass
from routelmt_batch.stages.planned import planned_rows
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.translate import translate
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.stats.selection import Cut, GainOrder, admitted


def guard(workspace: Job, plan: Plan, engine: Engine, bars: Bars) -> None:
    """Decide, before the large model decodes, which rows it is called for."""
    spec = workspace.spec.guard
    if spec.mode != "off" and not decided(workspace, ROUTE):
        candidates = _candidates(workspace, plan)
        if spec.mode == "predicted":
            _predict(workspace, plan, candidates, engine, bars)
        else:
            translate(workspace, plan, engine, bars, small_first=True)
            measured(workspace, SMALL, Candidates(candidates), engine, bars)
        decide_routes(workspace, plan, candidates)
    if plan.held_back and not decided(workspace, ESCALATE):
        translate(workspace, plan, engine, bars, small_first=True)
        check(workspace, [SMALL], engine, bars)
        if spec.escalate_below is not None:
            measured(workspace, SMALL, Called(plan.rule, False), engine, bars)
        decide_escalations(workspace, plan)


def verify(workspace: Job, plan: Plan, engine: Engine, bars: Bars) -> None:
    """Measure both translations of every row that the large model was called for."""
    if workspace.spec.guard.verify:
        for route in (SMALL, LARGE):
            measured(workspace, route, Called(plan.rule, True), engine, bars)


@dataclass(frozen=True)
class Candidates:
    """Selects the rows whose gain is inside a cut."""

    cut: Cut | None

    def __call__(self, work: UnitWork) -> Mask:
        return admitted(self.cut, planned_rows(work, None).gains)


@dataclass(frozen=True)
class Called:
    """Selects the translatable rows that the large model is, or is not, called for."""

    rule: Rule
    called: bool

    def __call__(self, work: UnitWork) -> Mask:
        planned = planned_rows(work, self.rule)
        return np.asarray((planned.called == self.called) & ~planned.skipped)


def _candidates(workspace: Job, plan: Plan) -> Cut | None:
    """The cut of the rows that the guard considers, without rows that the budget's own rule excludes."""
    wanted = min(int(workspace.spec.guard.candidates * plan.large), plan.reached)
    (candidates,) = GainOrder(CommittedGains(workspace)).select([wanted])
    return candidates.cut


def measured(
    workspace: Job, route: Route, wanted: Callable[[UnitWork], Mask], engine: Engine, bars: Bars
) -> None:
    """Measure one model's translations of the wanted rows that have no quality yet."""
    metric, pool = workspace.recipe.metric, workspace.spec.metric
    assert metric and pool
    work = [work_on(workspace, unit) for unit in workspace.units]
    run_pass(workspace, engine, bars, [measure.lane(workspace, route, pool, metric, work, wanted)])


@dataclass(frozen=True)
class Unpredicted:
    """Selects the candidates whose quality is not predicted yet."""

    candidates: Candidates

    def __call__(self, work: UnitWork) -> Mask:
        return np.asarray(self.candidates(work) & unmeasured(work, PREDICTED))


def _predict(workspace: Job, plan: Plan, candidates: Cut | None, engine: Engine, bars: Bars) -> None:
    """Run the quality router over the candidates' prompts, prefill only."""
    spec, router = workspace.spec, workspace.recipe.quality_router
    assert router and router.card
    scale: Scale = router.card.scale
    lane = Lane(
        label="quality-router",
        pool=router.pool,
        units=[work_on(workspace, unit) for unit in workspace.units],
        pending=Pending(Unpredicted(Candidates(candidates)), PromptReader(spec.input)),
        write=measure.QualityWriter(part_writer(workspace.ledger, QUALITY, PREDICTED), PREDICTED, scale),
        part_rows=spec.run.part_rows,
        stage=QUALITY,
        prompter=router.prompter,
        limit_tokens=router.prompt_limit(workspace.recipe.prompt_limit_tokens),
        scorer=router.scorer,
        retries=spec.run.retries,
        patience=spec.run.patience,
    )
    run_pass(workspace, engine, bars, [lane])
