"""Label: a parallel corpus through both models and a metric; gain = quality of large minus small.

The main job's passes on another recipe: sharded, resumable, the same commits. Paper: section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit, languages
from routelmt_batch.engines.nodes import processors
from routelmt_batch.job.flow import OpenEngine, Options, Outcome, finished_report
from routelmt_batch.learning.labelling.passes import (
    ROUTES,
    committed,
    measure,
    parts_of,
    translate,
    translated,
)
from routelmt_batch.learning.labelling.recipe import Labelling, check_label_models
from routelmt_batch.learning.labelling.report import Counts, report
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LABEL_FIELDS, LABEL_METADATA, UNTRANSLATABLE
from routelmt_batch.rows import QUALITY as QUALITY_SCHEMA
from routelmt_batch.rows import TRANSLATIONS as TRANSLATIONS_SCHEMA
from routelmt_batch.spec import LabelSpec
from routelmt_batch.stages.job_report import Verdict
from routelmt_batch.stages.outputs import (
    Addition,
    Summary,
    standing_outputs,
    succeed,
    write_report,
    write_shards,
)
from routelmt_batch.stages.translate import check_fit
from routelmt_batch.store.ledger import QUALITY, TRANSLATIONS, is_held
from routelmt_batch.store.workspace import Folder, open_workspace, refuse_cleaned, settled, take


def label(spec: LabelSpec, options: Options, bars: Bars, open_engine: OpenEngine) -> Outcome[dict[str, Any]]:
    """Label a corpus from wherever it stands to its end.

    Raises:
        RoutelmtError: see errors; what is committed stays, and the same command goes on.
    """
    with _open(spec, options, bars) as workspace, open_engine(workspace.folder) as engine:
        done = finished_report(workspace.folder)
        refuse_cleaned(workspace, done)
        if done:
            return Outcome(
                options.conditions.judge_labels(workspace.folder, done, failed_rows(done)), new=False
            )
        if workspace.ledger.rows(TRANSLATIONS) < len(ROUTES) * workspace.rows:
            check_fit(spec, engine, bars, {"metric": spec.metric})
        translate(workspace, engine, bars)
        measure(workspace, engine, bars)
        assemble(workspace, bars)
        job = report(workspace, workspace.recipe.signature().model_dump(mode="json"))
        write_report(workspace, job)
        succeed(workspace)
        return Outcome(options.conditions.judge_labels(workspace.folder, job, failed_rows(job)), new=True)


@contextmanager
def _open(spec: LabelSpec, options: Options, bars: Bars) -> Iterator[Labelling]:
    with take(spec) as begun:
        spec, dtypes = settled(spec, begun, bars, partial(processors, options.address))
        recipe = check_label_models(spec)
        with open_workspace(begun, recipe, bars, options.shards, options.limit, dtypes) as workspace:
            yield workspace


def standing(folder: Folder) -> dict[str, Any]:
    """How far an unfinished label job is; as flow.standing. What failed is not measured."""
    ledger, (shards, rows) = folder.ledger(), folder.extent()
    stages = {str(route): [ledger.count(TRANSLATIONS, route), rows] for route in ROUTES}
    failed = sum(translated(ledger, route, "failed") for route in ROUTES)
    stages["metric"] = [ledger.rows(QUALITY), len(ROUTES) * rows - failed]
    stages["assemble"] = [len(standing_outputs(ledger)), shards]
    return {"finished": False, "running": is_held(folder.work), "command": "label", "stages": stages}


def failed_rows(report: dict[str, Any]) -> int:
    """Rows that have no labels because a model or the metric failed; not those that nothing could label."""
    return sum(count for reason, count in report["unlabelled"].items() if reason not in UNTRANSLATABLE)


def exit_code(report: dict[str, Any]) -> int:
    """0 done; 3 done, but a model failed on rows or a shard could not be read."""
    return 3 if failed_rows(report) or report["unreadable"] else 0


def summary(report: dict[str, Any]) -> Summary:
    """See outputs.Summary."""
    figures = {
        "rows": report["rows"],
        "labelled": report["labelled"],
        "unlabelled": sum(report["unlabelled"].values()),
        "unreadable_shards": len(report["unreadable"]),
        "gain": report["overall"].get("gain"),
    }
    return Summary(exit_code(report), figures, list(report["unreadable"]), verdicts(report))


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """How the conditions of `--fail-if` were judged, if there were any."""
    return [Verdict.model_validate(one) for one in report.get("fail_if", ())]


def assemble(workspace: Labelling, bars: Bars) -> None:
    """Write every label table that is not committed yet: input columns, translations, qualities, gain."""

    def columns(unit: Unit, batch: pa.RecordBatch, counts: Counts) -> dict[str, pa.Array]:
        found: dict[str, pa.Array] = {}
        reasons = []
        for route in ROUTES:
            parts = parts_of(workspace.ledger, TRANSLATIONS, route, unit)
            table = committed(unit, parts, TRANSLATIONS_SCHEMA)
            reasons.append(_placed(unit, table, "reason"))
            found[f"translation_{route}"] = _placed(unit, table, "translation")
            parts = parts_of(workspace.ledger, QUALITY, route, unit)
            quality = committed(unit, parts, QUALITY_SCHEMA)
            found[f"quality_{route}"] = _placed(unit, quality, "quality")
        found["gain"] = pc.subtract(found["quality_large"], found["quality_small"])
        counts.add(found, reasons, *languages(batch, workspace.spec.input))
        return found

    signature = workspace.recipe.signature().model_dump_json().encode()
    addition = Addition(LABEL_FIELDS, Counts, columns, {LABEL_METADATA: signature})
    write_shards(workspace, addition, bars)


def _placed(unit: Unit, table: pa.Table, name: str) -> pa.Array:
    """A column of a unit's committed rows, by row; null where there is none."""
    place: npt.NDArray[np.int64] = np.full(unit.rows, -1)
    place[table["row"].to_numpy() - unit.first_row] = np.arange(table.num_rows)
    return table[name].take(pa.array(place, mask=place < 0)).combine_chunks()
