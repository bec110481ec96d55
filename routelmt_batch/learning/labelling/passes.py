"""The two passes of labelling: both models translate every row, a metric measures every translation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import REQUESTS, Engine, Lane, Receipt
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.learning.labelling.recipe import Labelling
from routelmt_batch.ledger import QUALITY, TRANSLATIONS, Ledger, read_rows
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from routelmt_batch.rows import LARGE, NOT_A_NUMBER, OK, SMALL, Route
from routelmt_batch.rows import QUALITY as QUALITY_SCHEMA
from routelmt_batch.rows import TRANSLATIONS as TRANSLATIONS_SCHEMA
from routelmt_batch.spec import Input
from routelmt_batch.stages.passes import PartWriter, requests, run_pass
from routelmt_batch.stages.translate import lane, order, pool_of
from routelmt_batch.units import Unit, read_lines

ROUTES: tuple[Route, Route] = (SMALL, LARGE)


@dataclass(frozen=True)
class Work:
    """A unit, and the parts that may hold its translations and qualities."""

    unit: Unit
    translations: tuple[str, ...]
    quality: tuple[str, ...]


def work_on(ledger: Ledger, unit: Unit) -> Work:
    return Work(
        unit,
        *(
            tuple(ledger.overlapping(stage, unit.shard.name, unit.first_row, unit.end_row))
            for stage in (TRANSLATIONS, QUALITY)
        ),
    )


def committed(unit: Unit, route: Route, parts: tuple[str, ...], schema: pa.Schema) -> pa.Table:
    """A model's committed rows of a unit, in row order."""
    table = read_rows(parts, unit.shard.name, unit.first_row, unit.end_row, schema)
    return table.filter(pc.equal(table["route"], route))


@dataclass(frozen=True)
class ToTranslate:
    """Emits a unit's rows that a model has not tried."""

    input: Input
    route: Route
    prompter: Prompter
    limit_tokens: int
    also: tuple[str, ...]

    def __call__(self, work: Work) -> Iterator[pa.Table]:
        unit = work.unit
        todo = np.ones(unit.rows, bool)
        done = committed(unit, self.route, work.translations, TRANSLATIONS_SCHEMA)
        todo[done["row"].to_numpy() - unit.first_row] = False
        for lines in read_lines(unit, self.input, self.also):
            keep = todo[np.array(lines.rows) - unit.first_row].tolist()
            if any(keep):
                yield requests(
                    lines, unit.shard.name, self.prompter, self.limit_tokens, keep, needs=self.also
                )


def translate(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Send every row that can be labelled to both models.

    Raises:
        RoutelmtError: one model failed on more than `run.max_failed_fraction` of the rows.
    """
    spec, ledger = workspace.spec, workspace.ledger
    _check_failures(workspace)
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
            after_commit=lambda: _check_failures(workspace),
        )


def _translating(workspace: Labelling, route: Route) -> Lane:
    spec = workspace.spec
    pool = pool_of(spec, route)
    prompter = Prompter(pool.source, spec.prompt.template, pool.trust_remote_code)
    work = [work_on(workspace.ledger, unit) for unit in workspace.units]
    read = ToTranslate(spec.input, route, prompter, pool.prompt_limit_tokens, spec.also)
    return lane(workspace, route, work, read)


def _check_failures(workspace: Labelling) -> None:
    allowed = workspace.spec.run.max_failed_fraction
    for route in ROUTES:
        failed = translated(workspace.ledger, route, "failed") - translated(
            workspace.ledger, route, "skipped"
        )
        if failed > allowed * workspace.rows:
            raise RoutelmtError(
                f"{route}: {failed} of {workspace.rows} rows failed, more than run.max_failed_fraction "
                f"{allowed} allows. Look into {workspace.folder.logs}; after mending, start again with "
                "another --output, or allow more"
            )


def translated(ledger: Ledger, route: Route, what: str) -> int:
    return ledger.count(TRANSLATIONS, f"{route}_{what}")


@dataclass(frozen=True)
class ToMeasure:
    """Emits a model's translations of a unit that have no quality yet, with source and reference."""

    input: Input
    route: Route
    also: tuple[str, ...]

    def __call__(self, work: Work) -> Iterator[pa.Table]:
        unit = work.unit
        done = set(committed(unit, self.route, work.quality, QUALITY_SCHEMA)["row"].to_pylist())
        table = committed(unit, self.route, work.translations, TRANSLATIONS_SCHEMA)
        good = table.filter(pc.equal(table["status"], OK)).select(["row", "translation"])
        texts = {
            row: text
            for row, text in zip(good["row"].to_pylist(), good["translation"].to_pylist(), strict=True)
            if row not in done
        }
        for lines in read_lines(unit, self.input, self.also):
            at = [i for i, row in enumerate(lines.rows) if row in texts]
            if at:
                yield (
                    _pairs(unit.shard.name, [lines.rows[i] for i in at], texts)
                    .append_column("source", pa.array([lines.texts[i] for i in at], pa.string()))
                    .append_column("reference", pa.array([lines.references[i] for i in at], pa.string()))
                )


def _pairs(shard: str, rows: list[int], texts: dict[int, str]) -> pa.Table:
    empty = pa.table(
        {
            "shard": [shard] * len(rows),
            "row": rows,
            "prompt_tokens": pa.nulls(len(rows), pa.int32()),
            "tokenized_prompt": [[]] * len(rows),
            "skip": [""] * len(rows),
        },
        schema=REQUESTS,
    )
    return empty.append_column("hypothesis", pa.array([texts[row] for row in rows], pa.string()))


@dataclass(frozen=True)
class QualityWriter:
    """Commits a metric's results."""

    part: PartWriter
    route: Route

    def __call__(self, results: pa.Table) -> Receipt:
        known = pc.fill_null(pc.is_finite(results["score"]), False)
        why = pc.if_else(pc.equal(results["error"], ""), NOT_A_NUMBER, results["error"])
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "route": [self.route] * results.num_rows,
                "quality": pc.if_else(known, results["score"], None),
                "reason": pc.if_else(known, None, why),
            },
            schema=QUALITY_SCHEMA,
        )
        counts = {self.route: table.num_rows, f"{self.route}_cut": pc.sum(results["cut"]).as_py() or 0}
        return self.part(table, counts, results["engine_seconds"])


def measure(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Score every translation that has no quality yet."""
    spec, ledger, metric = workspace.spec, workspace.ledger, workspace.recipe.metric
    wanted = {
        route: ledger.count(TRANSLATIONS, route) - translated(ledger, route, "failed") for route in ROUTES
    }
    for route in ROUTES:
        # One after the other: each takes the whole of the metric's pool.
        lane = Lane(
            label=f"{metric.name} of {route}",
            pool=spec.metric,
            task="score",
            scorer=metric,
            cuts=metric.cuts,
            python=metric.python,
            units=[work_on(ledger, unit) for unit in workspace.units],
            read=ToMeasure(spec.input, route, spec.also),
            write=QualityWriter(PartWriter(workspace.folder.work, QUALITY, route), route),
            part_rows=spec.run.part_rows,
        )
        run_pass(workspace, engine, bars, lane.label, [lane], wanted[route], ledger.count(QUALITY, route))
