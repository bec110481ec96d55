"""Guard: which planned calls to the large model are saved, who gets their places, what is escalated.

The plan stays what scores and budget made it. What the guard changes is a record of its own: parts of
decisions, committed together once they are all written, and never made again. Calls to the large
model never exceed the budget's places.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.checks import CHECK_REASONS
from routelmt_batch.engines.lanes import Engine, Lane
from routelmt_batch.ledger import GUARD, QUALITY, PartEntry
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from routelmt_batch.routers.card import Scale
from routelmt_batch.rows import (
    DECISIONS,
    ESCALATE,
    ESCALATED,
    FREED_PLACE,
    HYPOTHESIS_GOOD,
    LARGE,
    PREDICTED,
    PREDICTED_GOOD,
    ROUTE,
    SMALL,
    Route,
)
from routelmt_batch.selection import Cut, Gains, count, cuts
from routelmt_batch.spec import Input
from routelmt_batch.stages import measure
from routelmt_batch.stages.allocate import Plan, admitted, gains
from routelmt_batch.stages.attempts import Mask, attempts
from routelmt_batch.stages.check import check, reasons
from routelmt_batch.stages.measure import measurable, quality_by_row, unmeasured
from routelmt_batch.stages.passes import NO_TIMES, PartWriter, record_time, requests, run_pass
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.translate import translate
from routelmt_batch.stages.work import Work, planned_rows, work_on
from routelmt_batch.units import read_lines

_DECISION_ROWS = 65_536
_STEP = 1000.0


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
        _decide_routes(workspace, plan, candidates)
    if plan.held_back and not decided(workspace, ESCALATE):
        translate(workspace, plan, engine, bars, small_first=True)
        check(workspace, [SMALL], engine, bars)
        if spec.escalate_below is not None:
            measured(workspace, SMALL, Called(plan.cut, False), engine, bars)
        _decide_escalations(workspace, plan)


def verify(workspace: Job, plan: Plan, engine: Engine, bars: Bars) -> None:
    """Measure both translations of every row that the large model was called for."""
    if workspace.spec.guard.verify:
        for route in (SMALL, LARGE):
            measured(workspace, route, Called(plan.cut, True), engine, bars)


def decided(workspace: Job, step: str) -> bool:
    return any(event["step"] == step for event in workspace.ledger.events_of("guard"))


@dataclass(frozen=True)
class Candidates:
    """Selects the rows whose gain is inside a cut."""

    cut: Cut | None

    def __call__(self, work: Work) -> Mask:
        return admitted(self.cut, planned_rows(work, None).gains)


@dataclass(frozen=True)
class Called:
    """Selects the translatable rows that the large model is, or is not, called for."""

    cut: Cut | None
    called: bool

    def __call__(self, work: Work) -> Mask:
        planned = planned_rows(work, self.cut)
        return np.asarray((planned.called == self.called) & ~planned.skipped)


def _candidates(workspace: Job, plan: Plan) -> Cut | None:
    """The cut of the rows that the guard looks at: none that the budget's own rule leaves out."""
    lowest = plan.min_gain if plan.at_least is None else float(np.float32(plan.at_least))
    most = count(gains(workspace), lowest)
    wanted = min(int(workspace.spec.guard.candidates * plan.large), most)
    (cut,) = cuts(lambda: gains(workspace), [wanted], len(workspace.shards))
    return cut


def measured(
    workspace: Job, route: Route, wanted: Callable[[Work], Mask], engine: Engine, bars: Bars
) -> None:
    """Measure one model's translations of the wanted rows that have no quality yet."""
    metric, pool = workspace.recipe.metric, workspace.spec.metric
    assert metric and pool
    lane = partial(measure.lane, workspace, route, pool, metric)
    _run(workspace, engine, bars, lambda work: measurable(work, route), wanted, lane)


def _run(
    workspace: Job,
    engine: Engine,
    bars: Bars,
    pending: Callable[[Work], Mask],
    wanted: Callable[[Work], Mask],
    lane: Callable[[Sequence[Work], Callable[[Work], Mask]], Lane],
) -> None:
    """A pass over the wanted rows that are pending, if there are any."""
    work, total = [], 0
    for unit in workspace.units:
        one = work_on(workspace, unit)
        rows = int((wanted(one) & pending(one)).sum())
        if rows:
            work.append(one)
            total += rows
    if work:
        built = lane(work, wanted)
        run_pass(workspace, engine, bars, built.label, [built], total, 0)


@dataclass(frozen=True)
class PromptReader:
    """Emits the prompts of the wanted rows whose quality is not predicted yet."""

    input: Input
    wanted: Callable[[Work], Mask]
    prompter: Prompter
    limit_tokens: int

    def __call__(self, work: Work) -> Iterator[pa.Table]:
        unit = work.unit
        todo = self.wanted(work) & unmeasured(work, PREDICTED)
        for lines in read_lines(unit, self.input) if todo.any() else ():
            keep = todo[np.array(lines.rows) - unit.first_row].tolist()
            if any(keep):
                yield requests(lines, unit.shard.name, self.prompter, self.limit_tokens, keep)


def _predict(workspace: Job, plan: Plan, candidates: Cut | None, engine: Engine, bars: Bars) -> None:
    """The quality router over the candidates' prompts, prefill only."""
    spec, router = workspace.spec, workspace.recipe.quality_router
    assert router and router.card and router.tokenizer
    scale: Scale = router.card.scale
    tokenizer = router.tokenizer
    prompter = Prompter(tokenizer.source, spec.prompt.template, tokenizer.trust_remote_code)

    def lane(work: Sequence[Work], wanted: Callable[[Work], Mask]) -> Lane:
        return Lane(
            label="quality-router",
            pool=router.pool,
            task="score",
            units=work,
            read=PromptReader(
                spec.input,
                wanted,
                prompter,
                min(workspace.recipe.prompt_limit_tokens, router.pool.max_model_len_tokens),
            ),
            write=measure.Writer(PartWriter(workspace.folder.work, QUALITY, PREDICTED), PREDICTED, scale),
            part_rows=spec.run.part_rows,
            retries=spec.run.retries,
        )

    _run(workspace, engine, bars, lambda work: unmeasured(work, PREDICTED), Candidates(candidates), lane)


@dataclass(frozen=True)
class Contest:
    """Rows that contend for places: the highest of `contenders` (NaN: not one) get them."""

    contenders: Callable[[Work], npt.NDArray[np.float32]]
    decisions: Callable[[Work, Mask], pa.Table]  # what changes, given the rows that have a place


def _decide_routes(workspace: Job, plan: Plan, candidates: Cut | None) -> None:
    """Candidates with a good small translation stay small; the next ones by gain get their places."""
    spec = workspace.spec.guard
    of, why = (PREDICTED, PREDICTED_GOOD) if spec.mode == "predicted" else (SMALL, HYPOTHESIS_GOOD)
    above = spec.keep_small_above
    assert above is not None

    def contenders(work: Work) -> npt.NDArray[np.float32]:
        found = planned_rows(work, None).gains
        good = quality_by_row(work, of) > above
        return np.where(admitted(candidates, found) & ~good, found.gain, np.float32(np.nan))

    def decisions(work: Work, called: Mask) -> pa.Table:
        reason = np.where(called, FREED_PLACE, why)
        changed = called != planned_rows(work, plan.cut).large
        return _table(work, called, changed, reason, quality_by_row(work, of))

    _decide(workspace, ROUTE, plan.large, Contest(contenders, decisions))


def _decide_escalations(workspace: Job, plan: Plan) -> None:
    """The places held back go to the worst small translations."""
    below = workspace.spec.guard.escalate_below

    def contenders(work: Work) -> npt.NDArray[np.float32]:
        planned = planned_rows(work, plan.cut)
        severity = severities(work, below)
        return np.where(planned.called | planned.skipped, np.float32(np.nan), severity)

    def decisions(work: Work, called: Mask) -> pa.Table:
        return _table(work, called, called, np.full(len(called), ESCALATED, object), severities(work, below))

    _decide(workspace, ESCALATE, plan.held_back, Contest(contenders, decisions))


def _decide(workspace: Job, step: str, places: int, contest: Contest) -> None:
    """Choose among the contenders and commit what changes, all of it at once."""
    started = time.time()
    work = [work_on(workspace, unit) for unit in workspace.units]
    with _held(workspace.folder.work / GUARD, work, contest.contenders) as again:
        contenders = count(again())
        (cut,) = cuts(again, [min(places, contenders)], len(workspace.shards))

    def changes() -> Iterator[pa.Table]:
        for one in work:
            yield contest.decisions(one, admitted(cut, _gains(one, contest.contenders(one))))

    part = PartWriter(workspace.folder.work, GUARD, step)
    parts: list[PartEntry] = []
    to_large = to_small = 0
    for table in _batches(changes()):
        large = pc.sum(pc.equal(table["call"], LARGE)).as_py()
        to_large, to_small = to_large + large, to_small + table.num_rows - large
        parts.append(part(table, {}, NO_TIMES)["entry"])
    workspace.ledger.record(
        "guard",
        parts=parts,
        step=step,
        contenders=contenders,
        unfilled=max(0, places - contenders),
        to_large=to_large,
        to_small=to_small,
        escalated=to_large if step == ESCALATE else 0,
    )
    record_time(workspace.ledger, f"guard {step}", workspace.rows, started)


@contextlib.contextmanager
def _held(
    folder: Path, work: Sequence[Work], values: Callable[[Work], npt.NDArray[np.float32]]
) -> Iterator[Callable[[], Iterator[Gains]]]:
    """Contenders on disk while they are selected from: selection reads them six times."""
    schema = pa.schema([("gain", pa.float32()), ("rank", pa.int64()), ("row", pa.int64())])
    path = folder / "contenders.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for one in work:
            found = _gains(one, values(one))
            inside = ~np.isnan(found.gain)
            columns = [found.gain[inside], found.rank[inside], found.row[inside]]
            writer.write_table(pa.table(columns, schema=schema))

    def again() -> Iterator[Gains]:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                yield Gains(*(column.to_numpy() for column in reader.get_batch(index).columns))

    try:
        yield again
    finally:
        path.unlink()


def _gains(work: Work, values: npt.NDArray[np.float32]) -> Gains:
    rows = np.arange(work.unit.first_row, work.unit.end_row)
    return Gains(values.astype(np.float32), np.full(len(rows), work.rank), rows)


def _batches(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows of some tables in as few as memory allows; none empty."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= _DECISION_ROWS:
            yield pa.concat_tables(held)
            held = []
    if any(one.num_rows for one in held):
        yield pa.concat_tables(held)


def _table(
    work: Work, called: Mask, changed: Mask, reason: npt.NDArray[Any], value: npt.NDArray[Any]
) -> pa.Table:
    at = np.flatnonzero(changed)
    value = value[at].astype(np.float32)
    return pa.table(
        {
            "shard": [work.unit.shard.name] * len(at),
            "row": at + work.unit.first_row,
            "call": np.where(called, LARGE, SMALL)[at],
            "reason": reason[at],
            "value": pa.array(value, mask=np.isnan(value)),
        },
        schema=DECISIONS,
    )


def severities(work: Work, below: float | None) -> npt.NDArray[np.float32]:
    """How much each small translation needs the large model, NaN where it does not: what failed first,
    then by the number of failed checks, and among equals the lowest quality."""
    quality = quality_by_row(work, SMALL)
    low = quality < (np.nan if below is None else below)
    failed = np.array([len(found or ()) for found in reasons(work, SMALL)], float)
    state = attempts(work.unit, work.committed, np.zeros(work.unit.rows, bool))
    failed[state.failed[SMALL] & (state.place[SMALL] < 0)] = len(CHECK_REASONS) + 1
    # Qualities lie within a few hundred points: a thousand keeps the number of failures first.
    severity = _STEP * failed - np.nan_to_num(quality)
    return np.where(low | (failed > 0), severity, np.nan).astype(np.float32)
