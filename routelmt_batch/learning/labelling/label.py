"""Labels a parallel corpus with both models and a metric; gain = quality of large minus small.

It runs the main job's passes with another recipe, so it commits and resumes alike. Paper: section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import codes
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.engines.nodes import check_nodes, processors
from routelmt_batch.job.flow import OpenEngine, Options, Outcome
from routelmt_batch.learning.labelling.label_report import LabelReport
from routelmt_batch.learning.labelling.passes import (
    ROUTES,
    measure,
    translate,
)
from routelmt_batch.learning.labelling.recipe import Labelling, check_label_models
from routelmt_batch.learning.labelling.report import Counts, report
from routelmt_batch.progress import Bars
from routelmt_batch.rows import (
    LABEL_FIELDS,
    LABEL_METADATA,
    LARGE,
    OK,
    QUALITY,
    SMALL,
    TRANSLATIONS,
    Route,
)
from routelmt_batch.spec import Input, LabelSpec
from routelmt_batch.stages.lengths import add_lengths
from routelmt_batch.stages.outputs import Addition, current_outputs, succeed, write_report, write_shards
from routelmt_batch.stages.skips import check_codes, refuse_skipped
from routelmt_batch.stages.translate import check_fit
from routelmt_batch.stages.work import UnitWork
from routelmt_batch.store.beforehand import check_space
from routelmt_batch.store.begun import settled, take
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.workspace import open_workspace, refuse_cleaned


def label(spec: LabelSpec, options: Options, bars: Bars, open_engine: OpenEngine) -> Outcome[LabelReport]:
    """Label a corpus, from its start or from where an earlier run stopped.

    Raises:
        RoutelmtError: see errors. Committed rows are kept, and the same command continues.
    """
    with _open(spec, options, bars, open_engine) as (workspace, engine):
        done = LabelReport.finished(workspace.folder)
        workspace.ledger.refresh()
        refuse_cleaned(workspace, done)
        if done:
            return Outcome(
                options.conditions.judge(workspace.folder, done, workspace.ledger.check), new=False
            )
        if workspace.ledger.rows(TRANSLATIONS) < len(ROUTES) * workspace.rows:
            check_fit(spec, engine, bars, {"metric": spec.metric})
            check_space(workspace.folder.root, workspace.shards, options.limit, bars)
            check_codes(spec, workspace.units, bars, engine.each)
        translate(workspace, engine, bars)
        small = workspace.ledger.totals(TRANSLATIONS, SMALL)
        refuse_skipped(workspace, small.unanswered, small.rows)
        measure(workspace, engine, bars)
        assemble(workspace, engine, bars)
        reported = report(workspace, engine)
        write_report(workspace, reported, engine)
        succeed(workspace)
        judged = options.conditions.judge(workspace.folder, reported, workspace.ledger.check)
        return Outcome(judged, new=True)


@contextmanager
def _open(
    spec: LabelSpec, options: Options, bars: Bars, open_engine: OpenEngine
) -> Iterator[tuple[Labelling, Engine]]:
    with take(spec, bars) as begun, open_engine(begun.folder) as engine:
        check_nodes(options.address)
        spec, dtypes = settled(spec, begun, bars, partial(processors, options.address))
        recipe = check_label_models(spec, bars)
        found = begun, recipe, bars, options.shards, options.limit, dtypes
        yield open_workspace(*found, engine.each), engine


def unfinished(folder: Folder) -> dict[str, Any]:
    """The progress of unfinished labels, like flow.unfinished. Failed translations are not measured."""
    ledger, (shards, rows) = folder.ledger(), folder.extent()
    stages = {str(route): [ledger.rows(TRANSLATIONS, route), rows] for route in ROUTES}
    unanswered = ledger.totals(TRANSLATIONS).unanswered.total()
    stages["metric"] = [ledger.rows(QUALITY), len(ROUTES) * rows - unanswered]
    stages["assemble"] = [len(current_outputs(ledger)), shards]
    running = ledger.log.holder is not None
    return {"finished": False, "running": running, "command": "label", "stages": stages}


def assemble(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Write every label table that is not committed yet: input columns, translations, qualities, gain."""
    signature = workspace.recipe.signature().model_dump_json().encode()
    columns = _LabelColumns(workspace.spec.input)
    addition = Addition(LABEL_FIELDS, Counts, columns, [TRANSLATIONS, QUALITY], {LABEL_METADATA: signature})
    write_shards(workspace, addition, engine, bars)


@dataclass(frozen=True)
class _LabelColumns:
    """See outputs.Columns."""

    input: Input

    def __call__(self, work: UnitWork, batch: pa.RecordBatch, counted: Counts) -> dict[str, pa.Array]:
        added: dict[str, pa.Array] = {}
        by_reference: dict[Route, list[list[float] | None]] = {}
        reasons, written = [], codes(batch, self.input)
        for route in ROUTES:
            table = work.committed(TRANSLATIONS, model=route)
            reasons.append(_placed(work, table, "reason"))
            added[f"translation_{route}"] = _placed(work, table, "translation")
            qualities = work.committed(QUALITY, model=route)
            added[f"quality_{route}"] = _placed(work, qualities, "quality")
            by_reference[route] = _placed(work, qualities, "by_reference").to_pylist()
            if route == LARGE:
                add_lengths(counted.lengths, _with_codes(work, table, written))
        added["gain"] = pc.subtract(added["quality_large"], added["quality_small"])
        added["gain_by_reference"] = _gains(by_reference[LARGE], by_reference[SMALL])
        counted.add(added, reasons, *written)
        return added


def _with_codes(work: UnitWork, table: pa.Table, written: Sequence[pa.Array]) -> pa.Table:
    """The translations among committed rows, with language codes as they are written."""
    table = table.filter(pc.field("status") == OK)
    for name, code in zip(("source_lang", "target_lang"), written, strict=True):
        table = table.append_column(name, code.take(pa.array(work.offsets(table))))
    return table


def _gains(large: Sequence[list[float] | None], small: Sequence[list[float] | None]) -> pa.Array:
    """The gains of each row by reference; null without qualities by reference."""
    gains = [
        None if more is None or less is None else [a - b for a, b in zip(more, less, strict=True)]
        for more, less in zip(large, small, strict=True)
    ]
    return pa.array(gains, pa.list_(pa.float64()))


def _placed(work: UnitWork, table: pa.Table, name: str) -> pa.Array:
    """A column of committed rows, spread over all rows of the unit; null for the others."""
    index: npt.NDArray[np.int64] = np.full(work.unit.rows, -1)
    index[work.offsets(table)] = np.arange(table.num_rows)
    return table[name].take(pa.array(index, mask=index < 0)).combine_chunks()
