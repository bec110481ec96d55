"""Audit: both models translate a sample of rows, and the metric scores both translations.

The sample depends only on the seed and the routing. It is stratified by direction and route, in proportion,
and has the rows with the lowest hash of each stratum. Its calls do not count against the budget, and its
translations never reach the output.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit, languages, read_lines, read_unit
from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.progress import Bars
from routelmt_batch.routers.scorers import draw
from routelmt_batch.rows import (
    AUDIT_QUALITY,
    AUDIT_TRANSLATIONS,
    LARGE,
    QUALITY,
    SAMPLE,
    SMALL,
    TRANSLATIONS,
    Route,
)
from routelmt_batch.stages import measure
from routelmt_batch.stages.allocate import Plan
from routelmt_batch.stages.attempts import attempts, translated
from routelmt_batch.stages.gains import gain_of
from routelmt_batch.stages.job_report import JobReport
from routelmt_batch.stages.measure import verified_small
from routelmt_batch.stages.passes import part_writer, record_time, run_pass
from routelmt_batch.stages.planned import planned_rows
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.translate import lane
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.tokens import load_tokenizer

_OF_AUDIT = (SAMPLE, TRANSLATIONS, AUDIT_TRANSLATIONS, QUALITY, AUDIT_QUALITY)
ROUTES: tuple[Route, Route] = (LARGE, SMALL)
Stratum = tuple[str, str]  # direction, route
Drawn = tuple[float, str, int, float]  # hash, shard, row, gain


def audit(workspace: Job, plan: Plan, engine: Engine, bars: Bars) -> None:
    """Draw the sample once, translate its rows with the model that did not, and measure both translations."""
    if not workspace.spec.audit.fraction:
        return
    if not _is_drawn(workspace):
        _draw_sample(workspace, plan)
    for lane_of in (_translating, _measuring):
        for route in ROUTES:
            work = list(sample_work(workspace))
            run_pass(workspace, engine, bars, [lane_of(workspace, route, work)], "audit: {lanes}")


def audit_is_due(workspace: Job, done: JobReport | None) -> bool:
    """Whether the spec asks for an audit that the report of a finished job lacks, or that no sample is drawn
    for yet."""
    if workspace.spec.audit.fraction == 0:
        return False
    return not _is_drawn(workspace) or (done is not None and done.audit is None)


def _is_drawn(workspace: Job) -> bool:
    return any(workspace.ledger.events_of("audit"))


def sample_work(workspace: Job) -> Iterator[UnitWork]:
    """The units that hold rows of the sample, with the parts that the job and the audit committed."""
    for unit in workspace.units:
        work = work_on(workspace, unit, _OF_AUDIT)
        if work.parts[SAMPLE.name]:
            yield work


def sampled(work: UnitWork) -> Mask:
    return work.mask(work.committed(SAMPLE))


@dataclass(frozen=True)
class ToTranslate:
    """Selects the rows of the sample that a model has neither translated for the job nor tried for the
    audit."""

    route: Route

    def __call__(self, work: UnitWork) -> Mask:
        untried = work.missing(AUDIT_TRANSLATIONS, model=self.route)
        return sampled(work) & untried & ~work.mask(translated(work, self.route))


def _translating(workspace: Job, route: Route, work: Sequence[UnitWork]) -> Lane:
    pending = Pending(ToTranslate(route), PromptReader(workspace.spec.input))
    return lane(workspace, route, work, pending, AUDIT_TRANSLATIONS)


def _measuring(workspace: Job, route: Route, work: Sequence[UnitWork]) -> Lane:
    metric, pool = workspace.recipe.metric, workspace.spec.metric
    assert metric and pool
    return measure.lane(workspace, route, pool, metric, work, sampled, AUDIT_QUALITY)


def _eligible(workspace: Job, plan: Plan, unit: Unit) -> pa.Table:
    """A unit's rows that have a translation and a gain: row, gain, direction, route."""
    work, spec = work_on(workspace, unit), workspace.spec
    planned = planned_rows(work, plan.rule)
    state = attempts(work, planned.called)
    kept_small = verified_small(work, state, planned.called, spec.guard.verify_margin)
    gain = gain_of(planned.scores)
    known = state.translated & ~np.isnan(gain)
    columns = [
        codes
        for codes, constant in (
            (spec.input.columns.source_lang, spec.input.source_lang),
            (spec.input.columns.target_lang, spec.input.target_lang),
        )
        if constant is None
    ]
    read = (batch for _, batch in read_unit(unit, columns))
    pairs = [pc.binary_join_element_wise(*languages(batch, spec.input), "-") for batch in read]
    at = pa.array(np.flatnonzero(known))
    return pa.table(
        {
            "row": at.to_numpy() + unit.first_row,
            "gain": gain[known],
            "direction": pa.chunked_array(pairs).take(at),
            "route": state.table["route"].take(pa.array(state.chosen(kept_small)[known])),
        }
    )


def quotas(sizes: Counter[Stratum], wanted: int) -> dict[Stratum, int]:
    """Number of rows to draw from each stratum: in proportion, by largest remainders, and at least one each
    if enough rows are wanted."""
    total = sum(sizes.values())
    wanted = min(wanted, total)
    exact = {stratum: wanted * size / total for stratum, size in sizes.items()}
    quota = {stratum: max(1, math.floor(share)) for stratum, share in exact.items()}
    for stratum in sorted(exact, key=lambda stratum: (math.floor(exact[stratum]) - exact[stratum], stratum)):
        if sum(quota.values()) < wanted and quota[stratum] < exact[stratum]:
            quota[stratum] += 1
    while sum(quota.values()) > wanted:  # the minimum of small strata is taken from the largest ones
        quota[max(quota, key=lambda stratum: (quota[stratum], -sizes[stratum], stratum))] -= 1
    return quota


def _draw_sample(workspace: Job, plan: Plan) -> None:
    """Draw and commit the sample. It reads the rows twice, and only the sample is held in memory."""
    spec, started = workspace.spec.audit, time.time()
    sizes: Counter[Stratum] = Counter()
    for unit in workspace.units:
        for stratum, rows in _by_stratum(_eligible(workspace, plan, unit)):
            sizes[stratum] += rows.num_rows
    wanted = max(spec.min_rows, math.ceil(spec.fraction * sum(sizes.values())))
    quota = quotas(sizes, min(wanted, spec.max_rows))
    drawn: dict[Stratum, list[Drawn]] = {stratum: [] for stratum in quota}
    for unit in workspace.units:
        name = unit.shard.name
        for stratum, rows in _by_stratum(_eligible(workspace, plan, unit)):
            keys = ((draw(spec.seed, name, row), name, row, gain) for row, gain in _pairs(rows))
            drawn[stratum] = heapq.nsmallest(quota[stratum], itertools.chain(drawn[stratum], keys))
    table = _sample_table(workspace, drawn)
    part = part_writer(workspace.ledger, SAMPLE)
    parts = [part(table)] if table.num_rows else []
    strata = {" ".join(stratum): size for stratum, size in sorted(sizes.items())}
    workspace.ledger.record("audit", parts=parts, rows=table.num_rows, strata=strata)
    record_time(workspace.ledger, "audit: sample", table.num_rows, started)


def _by_stratum(rows: pa.Table) -> Iterator[tuple[Stratum, pa.Table]]:
    for pair in rows.group_by(["direction", "route"]).aggregate([]).to_pylist():
        mine = (pc.field("direction") == pair["direction"]) & (pc.field("route") == pair["route"])
        yield (pair["direction"], pair["route"]), rows.filter(mine)


def _pairs(rows: pa.Table) -> Iterator[tuple[int, float]]:
    return zip(rows["row"].to_pylist(), rows["gain"].to_pylist(), strict=True)


def _sample_table(workspace: Job, drawn: Mapping[Stratum, Sequence[Drawn]]) -> pa.Table:
    """The drawn rows, each with the length of its source."""
    chosen: dict[str, dict[int, tuple[str, str, float]]] = defaultdict(dict)
    for (pair, route), rows in drawn.items():
        for _, shard, row, gain in rows:
            chosen[shard][row] = (route, pair, gain)
    small = workspace.spec.models.small
    tokenizer = load_tokenizer(small.source, small.trust_remote_code)
    lines: list[tuple[Any, ...]] = []
    for unit in workspace.units:
        mine = chosen[unit.shard.name]
        if not any(unit.first_row <= row < unit.end_row for row in mine):
            continue
        for read in read_lines(unit, workspace.spec.input):
            for row, text in zip(read.rows, read.texts, strict=True):
                if row in mine:
                    tokens = len(tokenizer.ids([text or ""])[0])
                    lines.append((unit.shard.name, row, *mine[row], tokens))
    schema = SAMPLE.schema
    columns = list(zip(*lines, strict=True)) or [()] * len(schema)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
