"""Score: the router predicts every row's gain, with prefill only. Each score is committed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import Engine, Lane, Mask, Pending
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import Scale
from routelmt_batch.routers.router import Router
from routelmt_batch.rows import FOLDS, NOT_A_NUMBER, SCORES
from routelmt_batch.stages.passes import PartWriter, part_writer, refuse_failures, run_pass
from routelmt_batch.stages.requests import PromptReader
from routelmt_batch.stages.work import UnitWork, work_on
from routelmt_batch.store.ledger import PartEntry
from routelmt_batch.store.workspace import AnyWorkspace, Recipe


def unscored(work: UnitWork) -> Mask:
    return np.asarray(work.missing(SCORES) & (work.copies() > 0))


@dataclass(frozen=True)
class ScoreWriter:
    """Commits results as scores on the router's scale: mean + std x the model's output."""

    part: PartWriter
    scale: Scale

    def __call__(self, results: pa.Table) -> PartEntry:
        score = results["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        gain = (self.scale.mean + self.scale.std * score).astype(np.float32)
        missing = pc.is_null(results["score"])
        skips, errors = results["skip"].to_pylist(), results["error"].to_pylist()
        not_a_number = (np.isnan(gain) & ~missing.to_numpy()).tolist()
        reasons = [
            skip or error or (NOT_A_NUMBER if nan else None)
            for skip, error, nan in zip(skips, errors, not_a_number, strict=True)
        ]
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "gain": pa.array(gain, pa.float32(), mask=missing.to_numpy()),
                "prompt_tokens": results["prompt_tokens"],
                "direction": results["direction"],
                "reason": pa.array(reasons, pa.string()),
            },
            schema=SCORES.schema,
        )
        return self.part(table, results)


class Scoring(Recipe, Protocol):
    """The part of a recipe that scoring needs."""

    @property
    def router(self) -> Router: ...

    @property
    def prompt_limit_tokens(self) -> int: ...


def score(
    workspace: AnyWorkspace,
    engine: Engine,
    bars: Bars,
    name: str = "score",
    upcoming: Callable[[], Sequence[Lane]] | None = None,
) -> None:
    """Run the router over every row that has no committed score and follows no other row.

    Args:
        upcoming: see run_pass.

    Raises:
        RoutelmtError: the router fails on more than `run.max_failed_fraction` of the rows. The part
            that exceeds the limit is not committed, so that the same command tries its rows again.
    """
    ledger = workspace.ledger

    def check(entry: PartEntry) -> None:
        totals = ledger.totals(SCORES)
        totals.add(entry)
        refuse_failures(workspace, totals.failed, "the router gave no gain for")

    run_pass(workspace, engine, bars, [_lane(workspace)], name, check, upcoming=upcoming)
    if cut := ledger.totals(SCORES).sums["cut"]:
        bars.warn(f"{cut} texts are longer than the router reads: only their beginnings were scored")


def _lane(workspace: AnyWorkspace) -> Lane:
    recipe: Scoring = workspace.recipe
    spec, router = workspace.spec, recipe.router
    return Lane(
        label="router",
        pool=router.pool,
        units=[work_on(workspace, unit, [FOLDS, SCORES]) for unit in workspace.units],
        pending=Pending(unscored, PromptReader(spec.input)),
        write=ScoreWriter(part_writer(workspace.ledger, SCORES), router.scale),
        part_rows=spec.run.part_rows,
        stage=SCORES,
        prompter=router.prompter,
        limit_tokens=recipe.prompt_limit_tokens,
        scorer=router.scorer,
        cuts=router.cuts,
        python=router.python,
        retries=spec.run.retries,
        patience=spec.run.patience,
    )
