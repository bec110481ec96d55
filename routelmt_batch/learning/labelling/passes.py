"""The two passes of labelling: both models translate every row, a metric measures every translation."""

from __future__ import annotations

from dataclasses import dataclass

from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.learning.labelling.recipe import Labelling
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LARGE, QUALITY, SMALL, TRANSLATIONS, Route
from routelmt_batch.stages.measure import lane as measuring
from routelmt_batch.stages.passes import refuse_failures, run_pass
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.translate import lane, order
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.store.ledger import PartEntry

ROUTES: tuple[Route, Route] = (SMALL, LARGE)


@dataclass(frozen=True)
class Untried:
    """Selects the rows of a unit that a model has not tried."""

    route: Route

    def __call__(self, work: UnitWork) -> Mask:
        return work.missing(TRANSLATIONS, model=self.route)


def work_of(workspace: Labelling, route: Route) -> list[UnitWork]:
    """The units, each with the committed rows of one model."""
    return [work_on(workspace, unit, [TRANSLATIONS, QUALITY], route) for unit in workspace.units]


def translate(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Send every row that can be labelled to both models.

    Raises:
        RoutelmtError: one model failed on more than `run.max_failed_fraction` of the rows. The part
            that exceeds the limit is not committed, so the same command tries it again.
    """
    spec, ledger = workspace.spec, workspace.ledger

    def check(entry: PartEntry) -> None:
        totals = ledger.totals(TRANSLATIONS, entry.model)
        totals.add(entry)
        refuse_failures(workspace, totals.failed, f"{entry.model} failed on")

    for routes in order(spec, engine):
        lanes = [_translating(workspace, route) for route in routes]
        run_pass(workspace, engine, bars, lanes, before_commit=check)


def _translating(workspace: Labelling, route: Route) -> Lane:
    spec = workspace.spec
    pending = Pending(Untried(route), PromptReader(spec.input, spec.also))
    return lane(workspace, route, work_of(workspace, route), pending)


def measure(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Score every translation that has no quality yet."""
    spec, metric = workspace.spec, workspace.recipe.metric
    for route in ROUTES:
        # One model after the other: each lane takes the metric's whole pool.
        lane = measuring(workspace, route, spec.metric, metric, work_of(workspace, route))
        run_pass(workspace, engine, bars, [lane])
