"""Check: what is doubtful about each translation, judged by its text alone. Each is checked once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.checks.rules import NOT_CHECKED, check_translations
from routelmt_batch.corpus.units import read_lines
from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.progress import Bars
from routelmt_batch.rows import CHECKS, TRANSLATIONS, TRUNCATED, Route
from routelmt_batch.spec import Checks, Input, Pool
from routelmt_batch.stages.attempts import translated
from routelmt_batch.stages.passes import PartWriter, part_writer, run_pass
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import column_requests
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.store.ledger import PartEntry

_NOT_CHECKED = pa.scalar([NOT_CHECKED], pa.list_(pa.string()))


def check(workspace: Job, routes: Sequence[Route], engine: Engine, bars: Bars) -> None:
    """Check all translations by these models that are not checked yet, in one pass."""
    if not workspace.spec.checks.enabled:
        return
    lanes = [_lane(workspace, route) for route in routes]
    run_pass(workspace, engine, bars, lanes, "check {models}")


def checks_came_late(workspace: Job) -> bool:
    """Whether a finished job's rows were assembled without the checks that its spec asks for now."""
    ledger = workspace.ledger
    return workspace.spec.checks.enabled and ledger.rows(TRANSLATIONS) > 0 and not ledger.rows(CHECKS)


def _lane(workspace: Job, route: Route) -> Lane:
    spec = workspace.spec
    return Lane(
        label=f"check {route}",
        pool=checks_pool(spec.checks),
        scorer=TextChecks(spec.checks),
        fills="reasons",
        units=[work_on(workspace, unit, [TRANSLATIONS, CHECKS]) for unit in workspace.units],
        pending=Pending(Unchecked(route), CheckReader(spec.input, route)),
        write=CheckWriter(part_writer(workspace.ledger, CHECKS, route), route),
        part_rows=spec.run.part_rows,
        patience=spec.run.patience,
        stage=CHECKS,
        model=route,
    )


def checks_pool(checks: Checks) -> Pool:
    """The actors that check."""
    # A fraction of a CPU, because both models' checks run at once: if they took the last CPUs of a small
    # cluster, no task could read rows.
    return Pool(source="checks", gpus=0, replicas=checks.replicas, cpus=0.25)


@dataclass(frozen=True)
class Unchecked:
    """Selects the rows of a unit whose translation by one model is not checked yet."""

    route: Route

    def __call__(self, work: UnitWork) -> Mask:
        return work.mask(translated(work, self.route)) & work.missing(CHECKS, model=self.route)


@dataclass(frozen=True)
class CheckReader:
    """Reads one model's translations beside their sources."""

    input: Input
    route: Route

    def __call__(self, work: UnitWork, wanted: Mask) -> Iterator[pa.Table]:
        unit, good = work.unit, translated(work, self.route)
        texts = {
            row["row"]: (row["translation"], row["reason"] == TRUNCATED)
            for row in good.select(["row", "translation", "reason"]).to_pylist()
        }
        for lines in read_lines(unit, self.input):
            indices = [i for i, row in enumerate(lines.rows) if wanted[row - unit.first_row]]
            if indices:
                rows = [lines.rows[i] for i in indices]
                columns = {
                    "translation": pa.array([texts[row][0] for row in rows], pa.string()),
                    "truncated": pa.array([texts[row][1] for row in rows], pa.bool_()),
                    "source": pa.array([lines.texts[i] for i in indices], pa.string()),
                    "source_lang": pa.array([lines.source_langs[i] for i in indices], pa.string()),
                    "target_lang": pa.array([lines.target_langs[i] for i in indices], pa.string()),
                }
                yield column_requests(unit, rows, columns)


@dataclass(frozen=True)
class TextChecks:
    """A scorer that fills RESULTS' `reasons`: why each translation is doubtful."""

    settings: Checks

    def __call__(self, rows: pa.Table) -> list[list[str]]:
        names = ("source", "translation", "source_lang", "target_lang", "truncated")
        source, translation, source_lang, target_lang, truncated = (rows[name].to_pylist() for name in names)
        return check_translations(source, translation, source_lang, target_lang, truncated, self.settings)


@dataclass(frozen=True)
class CheckWriter:
    """Commits the reasons of each row; most have none. A row that the checks failed on is doubtful, too."""

    part: PartWriter
    route: Route

    def __call__(self, results: pa.Table) -> PartEntry:
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "route": [self.route] * results.num_rows,
                "reasons": pc.coalesce(results["reasons"], _NOT_CHECKED),
            },
            schema=CHECKS.schema,
        )
        return self.part(table, results)


def reasons(work: UnitWork, route: Route) -> npt.NDArray[np.object_]:
    """For each row of a unit, a list of the reasons why one model's translation is doubtful, or None if it
    was not checked."""
    by_row = np.full(work.unit.rows, None, object)
    table = work.committed(CHECKS, model=route)
    lists = np.empty(table.num_rows, object)
    lists[:] = table["reasons"].to_pylist()
    by_row[work.offsets(table)] = lists
    return by_row
