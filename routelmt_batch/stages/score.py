"""Score: every row's predicted gain by the router, prefill only; committed once, never again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import Unit
from routelmt_batch.engines.lanes import Engine, Lane, Mask
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import Scale
from routelmt_batch.routers.router import Router
from routelmt_batch.rows import NOT_A_NUMBER
from routelmt_batch.rows import SCORES as SCHEMA
from routelmt_batch.stages.passes import PartWriter, refuse_failures, run_pass, tokens_of
from routelmt_batch.stages.requests import PromptReader, not_in
from routelmt_batch.store.ledger import SCORES, PartEntry
from routelmt_batch.store.workspace import AnyWorkspace, Recipe


@dataclass(frozen=True)
class Work:
    """A unit, and the committed parts that may hold some of its rows."""

    unit: Unit
    committed: tuple[str, ...]


def unscored(work: Work) -> Mask:
    return not_in(work.committed, work.unit, SCHEMA)


@dataclass(frozen=True)
class Writer:
    """Commits results as scores on the router's scale: mean + std x what the model says."""

    part: PartWriter
    scale: Scale

    def __call__(self, results: pa.Table) -> PartEntry:
        score = results["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        gain = (self.scale.mean + self.scale.std * score).astype(np.float32)
        none = pc.is_null(results["score"])
        skips, errors = results["skip"].to_pylist(), results["error"].to_pylist()
        not_a_number = (np.isnan(gain) & ~none.to_numpy()).tolist()
        reasons = [
            skip or error or (NOT_A_NUMBER if nan else None)
            for skip, error, nan in zip(skips, errors, not_a_number, strict=True)
        ]
        table = pa.table(
            {
                "shard": results["shard"],
                "row": results["row"],
                "gain": pa.array(gain, pa.float32(), mask=none.to_numpy()),
                "prompt_tokens": results["prompt_tokens"],
                "reason": pa.array(reasons, pa.string()),
            },
            schema=SCHEMA,
        )
        lost = sum(not skip and math.isnan(value) for skip, value in zip(skips, gain, strict=True))
        counts = {
            "unscored": int(lost),
            "cut": pc.sum(results["cut"]).as_py() or 0,
            "prompt_tokens": tokens_of(results, "prompt_tokens"),
        }
        return self.part(table, counts)


class Scoring(Recipe, Protocol):
    """What scoring needs of a recipe."""

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
    """Run the router over every row that has no committed score.

    Args:
        upcoming: see run_pass.

    Raises:
        RoutelmtError: the router fails on more than `run.max_failed_fraction` of the rows. The part
            that would be too many is not committed, so that the same command tries it again.
    """
    ledger = workspace.ledger

    def check(entry: PartEntry) -> None:
        lost = ledger.count(SCORES, "unscored") + entry.counts["unscored"]
        refuse_failures(workspace, lost, "the router gave no gain for")

    done = ledger.rows(SCORES)
    lanes = [_lane(workspace)]
    run_pass(workspace, engine, bars, name, lanes, workspace.rows, done, check, upcoming=upcoming)
    if cut := ledger.count(SCORES, "cut"):
        bars.warn(f"{cut} texts are longer than the router reads: it scored them by their beginning")


def _lane(workspace: AnyWorkspace) -> Lane:
    recipe: Scoring = workspace.recipe
    spec, router = workspace.spec, recipe.router
    return Lane(
        label="router",
        pool=router.pool,
        units=_work(workspace),
        read=PromptReader(spec.input, unscored),
        write=Writer(PartWriter(workspace.folder.work, SCORES), router.scale),
        part_rows=spec.run.part_rows,
        stage=SCORES,
        prompter=router.prompter,
        limit_tokens=recipe.prompt_limit_tokens,
        scorer=router.scorer,
        cuts=router.cuts,
        python=router.python,
        retries=spec.run.retries,
    )


def _work(workspace: AnyWorkspace) -> list[Work]:
    """The units of every shard that is not scored whole."""
    ledger = workspace.ledger
    done = dict.fromkeys(workspace.shard_rows, 0)
    for entry in ledger.parts[SCORES]:
        for name, span in entry.spans.items():
            done[name] += span.rows
    return [
        Work(unit, tuple(ledger.overlapping(SCORES, unit.shard.name, unit.first_row, unit.end_row)))
        for unit in workspace.units
        if done[unit.shard.name] < workspace.shard_rows[unit.shard.name]
    ]
