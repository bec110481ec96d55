"""A router over tables, as a job would run it: the score pass, resumable, in a folder of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from routelmt_batch.corpus.shards import Shard, text_columns
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import InputChanged, InputError, WorkChanged
from routelmt_batch.kinds import KINDS, ROUTER_FOLDER, SMALL_MODEL
from routelmt_batch.learning.labels import check_texts, find, texts_of
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import read_card
from routelmt_batch.routers.registry import open_router
from routelmt_batch.routers.router import Router
from routelmt_batch.rows import SCORES
from routelmt_batch.spec import Input, Output, Prompt, Run, ScoreSpec
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.stages.allocate import gains
from routelmt_batch.stages.score import score
from routelmt_batch.stages.tally import directions
from routelmt_batch.store import checkpoints
from routelmt_batch.store.begun import Begun, settled, take
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.manifest import of_input
from routelmt_batch.store.workspace import R, Workspace, open_workspace

_LONGEST_PROMPT_TOKENS = 2048
_ANY_SHARE = 1  # a row without a score is reported, and ends nothing


@dataclass(frozen=True)
class ScoreRecipe:
    """See workspace.Recipe."""

    spec: ScoreSpec
    router: Router

    @property
    def prompt_limit_tokens(self) -> int:
        return self.spec.router.max_model_len_tokens

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        return {SCORES.name: of_input(self.spec, shards, limit) | self.router.fingerprint()}


@dataclass(frozen=True)
class Scored:
    """A router's scores of every row of some tables, in their order; NaN where it gave none."""

    router: Router
    scores: npt.NDArray[np.float32]
    directions: tuple[str, ...]  # of the tables, as tally.direction names them, in name order


def router_spec(kind: str, source: str, seed: int = 0, dtype: str = "auto") -> RouterSpec:
    """A router's pool with the sizes that its checkpoint allows."""
    longest = _LONGEST_PROMPT_TOKENS
    if source and KINDS[kind] in (ROUTER_FOLDER, SMALL_MODEL):
        checkpoints.locate(source, f"--router {kind}={source}")
        longest = min(longest, checkpoints.context_tokens(source) or longest)
    return RouterSpec.model_validate(
        {"kind": kind, "source": source, "seed": seed, "dtype": dtype, "max_model_len_tokens": longest}
    )


def score_tables(
    tables: Sequence[str],
    router: RouterSpec,
    folder: Path,
    small_weights: str | None,
    engine: Engine,
    bars: Bars,
    name: str,
) -> Scored:
    """Score every row of the tables; what `folder` holds of an earlier try is gone on with, unless that
    was of other tables or another router: then it is dropped.

    Raises:
        UsageError: the router does not fit, or the tables lack the text that it reads.
    """
    found = find(tables)
    texts = texts_of(found)
    check_texts(found, text_columns(texts).values())
    prompt = Prompt()
    if KINDS[router.kind] is ROUTER_FOLDER:
        prompt = Prompt(template=read_card(router.source).prompt_template)
    spec = ScoreSpec(
        name=name,
        input=Input(uri=tuple(tables), **dict(texts)),
        output=Output(uri=str(folder)),
        prompt=prompt,
        run=Run.model_validate({"max_failed_fraction": _ANY_SHARE}),
        router=router,
    )

    spec, dtypes = settled(spec, Begun.read(Folder(folder)), bars)
    recipe = ScoreRecipe(spec, open_router(spec, spec.router, None, small_weights))
    with open_tables(recipe, bars, dtypes=dtypes) as workspace:
        score(workspace, engine, bars, f"score {name}")
        rows = workspace.shard_rows
        first = np.cumsum([0, *rows.values()])
        scores = np.full(workspace.rows, np.nan, np.float32)
        for part in gains(workspace):
            scores[first[part.rank] + part.row] = part.gain
        return Scored(workspace.recipe.router, scores, directions(workspace.units, spec.input))


@contextlib.contextmanager
def open_tables(
    recipe: R, bars: Bars, what: str = "scores", dtypes: Mapping[str, str] | None = None
) -> Iterator[Workspace[Any, R]]:
    """The folder of what is made of some tables' rows, opened; emptied first if what it holds is of
    something else.

    Raises:
        InputError: a table cannot be read.
    """
    folder = recipe.spec.output.uri

    def opened() -> Workspace[Any, R]:
        begun = stack.enter_context(take(recipe.spec))
        return stack.enter_context(open_workspace(begun, recipe, bars, dtypes=dtypes))

    with contextlib.ExitStack() as stack:
        try:
            workspace = opened()
        except (InputChanged, WorkChanged):
            bars.warn(f"{folder}: its {what} are of other tables or settings, or damaged; made anew")
            stack.close()
            shutil.rmtree(folder)
            workspace = opened()
        if workspace.unreadable:
            told = "; ".join(f"{shard}: {why}" for shard, why in workspace.unreadable.items())
            raise InputError(f"{told}: cannot be read, and its rows have no {what}; mend or remove it")
        yield workspace
