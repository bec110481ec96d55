"""Check: what is doubtful about each translation, as far as its text tells; committed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.checks.rules import CHECK_REASONS, NOT_CHECKED, check_translations
from routelmt_batch.corpus.units import Unit, read_lines
from routelmt_batch.engines.lanes import Engine, Lane
from routelmt_batch.progress import Bars
from routelmt_batch.rows import CHECKS as SCHEMA
from routelmt_batch.rows import OK, TRUNCATED, Route
from routelmt_batch.rows import TRANSLATIONS as TRANSLATIONS_SCHEMA
from routelmt_batch.spec import Checks, Input, Pool
from routelmt_batch.stages.passes import PartWriter, run_pass
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import column_requests
from routelmt_batch.stages.work import Work, work_on
from routelmt_batch.store.ledger import CHECKS, TRANSLATIONS, PartEntry, read_rows


def check(workspace: Job, routes: Sequence[Route], engine: Engine, bars: Bars) -> None:
    """Check every translation of the models that is not checked yet, all in one pass."""
    if not workspace.spec.checks.enabled:
        return
    ledger = workspace.ledger
    done = {route: ledger.count(CHECKS, route) for route in routes}
    good = {
        route: ledger.count(TRANSLATIONS, route) - ledger.count(TRANSLATIONS, f"{route}_failed")
        for route in routes
    }
    todo = [route for route in routes if done[route] < good[route]]
    lanes = [_lane(workspace, route) for route in todo]
    name = "check " + "+".join(todo)
    run_pass(workspace, engine, bars, name, lanes, sum(good[r] for r in todo), sum(done[r] for r in todo))


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
        units=[work_on(workspace, unit) for unit in workspace.units],
        read=Reader(spec.input, route),
        write=Writer(PartWriter(workspace.folder.work, CHECKS, route), route),
        part_rows=spec.run.part_rows,
        stage=CHECKS,
        model=route,
    )


def checks_pool(checks: Checks) -> Pool:
    """The actors that check."""
    # A fraction of a CPU: both models' checks run at once, and where they took the last CPU of a small
    # cluster nothing could be read.
    return Pool(source="checks", gpus=0, replicas=checks.replicas, cpus=0.25)


@dataclass(frozen=True)
class Reader:
    """Emits one model's translations that are not checked yet, beside their sources."""

    input: Input
    route: Route

    def __call__(self, work: Work) -> Iterator[pa.Table]:
        unit = work.unit
        at = (unit.shard.name, unit.first_row, unit.end_row)
        mine = (pc.field("route") == self.route) & (pc.field("status") == OK)
        good = read_rows(work.translations, *at, TRANSLATIONS_SCHEMA).filter(mine)
        done = set(checked(work, self.route)["row"].to_pylist())
        texts = {
            row["row"]: (row["translation"], row["reason"] == TRUNCATED)
            for row in good.select(["row", "translation", "reason"]).to_pylist()
            if row["row"] not in done
        }
        for lines in read_lines(unit, self.input) if texts else ():
            places = [i for i, row in enumerate(lines.rows) if row in texts]
            if places:
                rows = [lines.rows[i] for i in places]
                columns = {
                    "translation": pa.array([texts[row][0] for row in rows], pa.string()),
                    "truncated": pa.array([texts[row][1] for row in rows], pa.bool_()),
                    "source": pa.array([lines.texts[i] for i in places], pa.string()),
                    "source_lang": pa.array([lines.source_langs[i] for i in places], pa.string()),
                    "target_lang": pa.array([lines.target_langs[i] for i in places], pa.string()),
                }
                yield column_requests(unit, rows, columns)


@dataclass(frozen=True)
class TextChecks:
    """A scorer: the reasons of a row as a number, one bit for each of CHECK_REASONS."""

    settings: Checks

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        names = ("source", "translation", "source_lang", "target_lang", "truncated")
        source, translation, source_lang, target_lang, truncated = (rows[name].to_pylist() for name in names)
        found = check_translations(source, translation, source_lang, target_lang, truncated, self.settings)
        return np.array(
            [sum(1 << CHECK_REASONS.index(slug) for slug in slugs) for slugs in found], np.float64
        )


@dataclass(frozen=True)
class Writer:
    """Commits the reasons of each row; most have none. One that no check got through is a doubt, too."""

    part: PartWriter
    route: Route

    def __call__(self, results: pa.Table) -> PartEntry:
        scores = results["score"].to_pylist()
        reasons = [[NOT_CHECKED] if score is None else _slugs(int(score)) for score in scores]
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "route": [self.route] * results.num_rows,
                "reasons": reasons,
            },
            schema=SCHEMA,
        )
        return self.part(table, {self.route: table.num_rows})


def _slugs(bits: int) -> list[str]:
    return [slug for place, slug in enumerate(CHECK_REASONS) if bits >> place & 1]


def checked(work: Work, route: Route) -> pa.Table:
    """One model's checked translations of a unit, in row order."""
    unit: Unit = work.unit
    table = read_rows(work.checks, unit.shard.name, unit.first_row, unit.end_row, SCHEMA)
    return table.filter(pc.field("route") == route)


def reasons(work: Work, route: Route) -> npt.NDArray[np.object_]:
    """Of each row of a unit, the reasons why one model's translation is doubtful: a list, or None where
    it was not checked."""
    found = np.full(work.unit.rows, None, object)
    table = checked(work, route)
    lists = np.empty(table.num_rows, object)
    lists[:] = table["reasons"].to_pylist()
    found[table["row"].to_numpy() - work.unit.first_row] = lists
    return found
