"""Label: a parallel corpus through both models and a metric; gain = quality of large minus small.

The main job's passes on another recipe: sharded, resumable, the same commits. Paper: section 3.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch import checkpoints
from routelmt_batch.engines.lanes import REQUESTS, Engine, Lane, Receipt
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.job import OpenEngine, Options, Outcome, finished
from routelmt_batch.learning.label_report import Counts, report
from routelmt_batch.ledger import QUALITY, TRANSLATIONS, Ledger, read_rows
from routelmt_batch.manifest import of_input, of_prompt, of_translations
from routelmt_batch.metrics.metric import Metric, describe, open_metric
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from routelmt_batch.rows import LABEL_FIELDS, LABEL_METADATA, LARGE, OK, SMALL, UNTRANSLATABLE, Route
from routelmt_batch.rows import QUALITY as QUALITY_SCHEMA
from routelmt_batch.rows import TRANSLATIONS as TRANSLATIONS_SCHEMA
from routelmt_batch.shards import Shard
from routelmt_batch.spec import Input, LabelSpec
from routelmt_batch.stages.assemble import languages
from routelmt_batch.stages.outputs import Addition, finish, write_shards
from routelmt_batch.stages.passes import PartWriter, requests, run_pass
from routelmt_batch.stages.translate import lane, order, pool_of
from routelmt_batch.units import Unit, read_lines
from routelmt_batch.workspace import Workspace, check_pool, open_workspace

ROUTES: tuple[Route, Route] = (SMALL, LARGE)


@dataclass(frozen=True)
class LabelRecipe:
    """See workspace.Recipe."""

    spec: LabelSpec
    metric: Metric

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        corpus = of_input(self.spec, shards, limit)
        return {
            "translations": corpus | of_translations(self.spec),
            "quality": corpus | of_prompt(self.spec) | {"metric": describe(self.metric)},
        }

    def signature(self) -> dict[str, Any]:
        """What the labels are of: models, generation, prompt and metric."""
        models = {"small": self.spec.models.small, "large": self.spec.models.large}
        return {
            "metric": describe(self.metric),
            "models": {
                name: {"source": pool.source, "weights": checkpoints.weights_hash(pool.source)}
                for name, pool in models.items()
            },
            "generation": {
                "decoding": "greedy",
                **{
                    name: {"dtype": pool.dtype, "max_output_tokens": pool.max_output_tokens}
                    for name, pool in models.items()
                },
            },
            "prompt": {"template": self.spec.prompt.template},
        }


Labelling: TypeAlias = Workspace[LabelSpec, LabelRecipe]


def check_label_models(spec: LabelSpec) -> LabelRecipe:
    """Raises ModelError if a model is not there or too short."""
    for key, pool in (("models.small", spec.models.small), ("models.large", spec.models.large)):
        check_pool(key, pool)
    return LabelRecipe(spec, open_metric(spec.metric.source))


def label(spec: LabelSpec, options: Options, bars: Bars, open_engine: OpenEngine) -> Outcome:
    """Label a corpus from wherever it stands to its end.

    Raises:
        RoutelmtError: see errors; what is committed stays, and the same command goes on.
    """
    with (
        open_workspace(spec, options.shards, options.limit, bars, check_label_models) as workspace,
        open_engine(workspace.folder) as engine,
    ):
        done = finished(workspace.folder)
        if done:
            return Outcome(done, new=False)
        translate(workspace, engine, bars)
        measure(workspace, engine, bars)
        assemble(workspace, bars)
        job = report(workspace, workspace.recipe.signature())
        finish(workspace, job)
        return Outcome(job, new=True)


def exit_code(report: dict[str, Any]) -> int:
    """0 done; 3 done, but a model failed on rows or a shard could not be read."""
    failed = [reason for reason in report["unlabelled"] if reason not in UNTRANSLATABLE]
    return 3 if failed or report["unreadable"] else 0


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

    def __call__(self, work: Work) -> Iterator[pa.Table]:
        unit = work.unit
        todo = np.ones(unit.rows, bool)
        done = committed(unit, self.route, work.translations, TRANSLATIONS_SCHEMA)
        todo[done["row"].to_numpy() - unit.first_row] = False
        for lines in read_lines(unit, self.input, ("reference",)):
            keep = todo[np.array(lines.rows) - unit.first_row].tolist()
            if any(keep):
                yield requests(
                    lines, unit.shard.name, self.prompter, self.limit_tokens, keep, needs=("reference",)
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
    return lane(workspace, route, work, ToTranslate(spec.input, route, prompter, pool.prompt_limit_tokens))


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
        for lines in read_lines(unit, self.input, ("reference",)):
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
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "route": [self.route] * results.num_rows,
                "quality": results["score"],
                "reason": pa.nulls(results.num_rows, pa.string()),
            },
            schema=QUALITY_SCHEMA,
        )
        return self.part(table, {self.route: table.num_rows}, results["engine_seconds"])


def measure(workspace: Labelling, engine: Engine, bars: Bars) -> None:
    """Score every translation that has no quality yet."""
    spec, ledger = workspace.spec, workspace.ledger
    wanted = {
        route: ledger.count(TRANSLATIONS, route) - translated(ledger, route, "failed") for route in ROUTES
    }
    pending = [route for route in ROUTES if ledger.count(QUALITY, route) < wanted[route]]
    lanes = [
        Lane(
            label=f"{spec.metric.source} of {route}",
            pool=spec.metric,
            task="apply",
            scorer=workspace.recipe.metric,
            units=[work_on(ledger, unit) for unit in workspace.units],
            read=ToMeasure(spec.input, route),
            write=QualityWriter(PartWriter(workspace.folder.work, QUALITY, route), route),
            part_rows=spec.run.part_rows,
        )
        for route in pending
    ]
    run_pass(
        workspace,
        engine,
        bars,
        spec.metric.source,
        lanes,
        sum(wanted[route] for route in pending),
        sum(ledger.count(QUALITY, route) for route in pending),
    )


def assemble(workspace: Labelling, bars: Bars) -> None:
    """Write every label table that is not committed yet: input columns, translations, qualities, gain."""

    def columns(unit: Unit, batch: pa.RecordBatch, counts: Counts) -> dict[str, pa.Array]:
        work = work_on(workspace.ledger, unit)
        found: dict[str, pa.Array] = {}
        reasons = []
        for route in ROUTES:
            table = committed(unit, route, work.translations, TRANSLATIONS_SCHEMA)
            reasons.append(_placed(unit, table, "reason"))
            found[f"translation_{route}"] = _placed(unit, table, "translation")
            quality = committed(unit, route, work.quality, QUALITY_SCHEMA)
            found[f"quality_{route}"] = _placed(unit, quality, "quality")
        found["gain"] = pc.subtract(found["quality_large"], found["quality_small"])
        counts.add(found, reasons, *languages(batch, workspace.spec.input))
        return found

    signature = json.dumps(workspace.recipe.signature(), ensure_ascii=False)
    addition = Addition(LABEL_FIELDS, Counts, columns, {LABEL_METADATA: signature.encode()})
    write_shards(workspace, addition, bars)


def _placed(unit: Unit, table: pa.Table, name: str) -> pa.Array:
    """A column of a unit's committed rows, by row; null where there is none."""
    place: npt.NDArray[np.int64] = np.full(unit.rows, -1)
    place[table["row"].to_numpy() - unit.first_row] = np.arange(table.num_rows)
    return table[name].take(pa.array(place, mask=place < 0)).combine_chunks()
