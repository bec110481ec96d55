"""The two passes of labelling: both models translate every row, a metric measures every translation."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Engine, Lane, Mask
from routelmt_batch.learning.labelling.recipe import Labelling
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LARGE, SMALL, Route
from routelmt_batch.rows import TRANSLATIONS as TRANSLATIONS_SCHEMA
from routelmt_batch.stages.measure import lane as measuring
from routelmt_batch.stages.passes import refuse_failures, run_pass
from routelmt_batch.stages.requests import PromptReader, not_in
from routelmt_batch.stages.translate import lane, order
from routelmt_batch.store.ledger import QUALITY, TRANSLATIONS, Ledger, PartEntry, read_rows

ROUTES: tuple[Route, Route] = (SMALL, LARGE)


@dataclass(frozen=True)
class Work:
    """A unit, and the parts that may hold one model's translations and their qualities."""

    unit: Unit
    translations: tuple[str, ...]
    quality: tuple[str, ...]


def work_on(ledger: Ledger, route: Route, unit: Unit) -> Work:
    return Work(unit, *(parts_of(ledger, stage, route, unit) for stage in (TRANSLATIONS, QUALITY)))


def parts_of(ledger: Ledger, stage: str, route: Route, unit: Unit) -> tuple[str, ...]:
    """Parts that may hold a unit's rows of one model: a lane commits one model's."""
    entries = ledger.overlapping_entries(stage, unit.shard.name, unit.first_row, unit.end_row)
    return tuple(str(ledger.part_path(entry)) for entry in entries if entry.model == route)


def committed(unit: Unit, parts: tuple[str, ...], schema: pa.Schema) -> pa.Table:
    """The rows of a unit that parts hold, in row order."""
    return read_rows(parts, unit.shard.name, unit.first_row, unit.end_row, schema)


def untried(work: Work) -> Mask:
    return not_in(work.translations, work.unit, TRANSLATIONS_SCHEMA)


def translate(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Send every row that can be labelled to both models.

    Raises:
        RoutelmtError: one model failed on more than `run.max_failed_fraction` of the rows. The part
            that would be too many is not committed, so that the same command tries it again.
    """
    spec, ledger = workspace.spec, workspace.ledger

    def check(entry: PartEntry) -> None:
        for route in ROUTES:
            # A row that is no model's to try (no text, no reference) counts as failed and as skipped.
            failed, skipped = (
                translated(ledger, route, what) + entry.counts.get(f"{route}_{what}", 0)
                for what in ("failed", "skipped")
            )
            refuse_failures(workspace, failed - skipped, f"{route} failed on")

    for routes in order(spec, engine):
        pending = [route for route in routes if ledger.count(TRANSLATIONS, route) < workspace.rows]
        lanes = [_translating(workspace, route) for route in pending]
        run_pass(
            workspace,
            engine,
            bars,
            "+".join(pending),
            lanes,
            workspace.rows * len(pending),
            sum(ledger.count(TRANSLATIONS, route) for route in pending),
            check,
        )


def _translating(workspace: Labelling, route: Route) -> Lane:
    spec = workspace.spec
    work = [work_on(workspace.ledger, route, unit) for unit in workspace.units]
    return lane(workspace, route, work, PromptReader(spec.input, untried, spec.also))


def translated(ledger: Ledger, route: Route, what: str) -> int:
    return ledger.count(TRANSLATIONS, f"{route}_{what}")


def measure(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Score every translation that has no quality yet."""
    spec, ledger = workspace.spec, workspace.ledger
    for route in ROUTES:
        # One after the other: each takes the whole of the metric's pool.
        work = [work_on(ledger, route, unit) for unit in workspace.units]
        lane = measuring(workspace, route, spec.metric, workspace.recipe.metric, work)
        wanted = ledger.count(TRANSLATIONS, route) - translated(ledger, route, "failed")
        run_pass(workspace, engine, bars, lane.label, [lane], wanted, ledger.count(QUALITY, route))
