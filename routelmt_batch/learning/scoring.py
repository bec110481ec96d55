"""Scores tables with a router as a job does: the resumable score pass in its own folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from routelmt_batch.corpus.codes import count_codes
from routelmt_batch.corpus.shards import Shard, text_columns
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import InputChanged, InputError, WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import remove_folder
from routelmt_batch.kinds import KINDS, ROUTER_FOLDER, SMALL_MODEL
from routelmt_batch.learning.labels import check_texts, find, texts_of
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import read_card
from routelmt_batch.routers.registry import open_router
from routelmt_batch.routers.router import Router
from routelmt_batch.rows import SCORES
from routelmt_batch.spec import Input, Output, Prompt, Run, ScoreSpec
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.stages.gains import CommittedGains
from routelmt_batch.stages.score import score
from routelmt_batch.store import checkpoints
from routelmt_batch.store.begun import Begun, settled, take
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.manifest import of_input
from routelmt_batch.store.pickles import check_pickles
from routelmt_batch.store.workspace import R, Workspace, open_workspace

_LONGEST_PROMPT_TOKENS = 2048
_ANY_SHARE = 1  # rows without a score are reported and do not end the pass


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
    """A router's score for every row of the tables, in order; NaN for a row without one."""

    router: Router
    scores: npt.NDArray[np.float32]
    directions: tuple[str, ...]  # of the tables, as languages.direction names them, in name order


def router_spec(kind: str, source: str, seed: int = 0, dtype: str = "auto") -> RouterSpec:
    """A router's pool, with prompts as long as its checkpoint allows."""
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
    folder: Location,
    small_weights: str | None,
    engine: Engine,
    bars: Bars,
    name: str,
) -> Scored:
    """Score every row of the tables.

    It continues from the scores in `folder`. If they are from other tables or another router, it deletes
    them and starts again.

    Raises:
        UsageError: the router does not fit, or the tables lack the text that it reads.
    """
    files = find(tables)
    texts = texts_of(files)
    check_texts(files, text_columns(texts).values())
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
    check_pickles(spec, bars)
    with open_tables(recipe, bars, dtypes=dtypes) as workspace:
        score(workspace, engine, bars, f"score {name}")
        rows = workspace.shard_rows
        first = np.cumsum([0, *rows.values()])
        scores = np.full(workspace.rows, np.nan, np.float32)
        for part in CommittedGains(workspace)():
            scores[first[part.rank] + part.row] = part.gain
        codes = count_codes(workspace.units, spec.input, engine.each)
        return Scored(workspace.recipe.router, scores, tuple(sorted(codes.directions)))


@contextlib.contextmanager
def open_tables(
    recipe: R, bars: Bars, what: str = "scores", dtypes: Mapping[str, str] | None = None
) -> Iterator[Workspace[Any, R]]:
    """Open the folder of a pass over tables. If it belongs to other tables or settings, or is damaged, it is
    emptied first.

    Raises:
        InputError: a table cannot be read.
    """
    folder = recipe.spec.output.uri

    def opened() -> Workspace[Any, R]:
        begun = stack.enter_context(take(recipe.spec, bars))
        return open_workspace(begun, recipe, bars, dtypes=dtypes)

    with contextlib.ExitStack() as stack:
        try:
            workspace = opened()
        except (InputChanged, WorkChanged):
            bars.warn(
                f"{folder}: its {what} are from other tables or settings, or damaged; they are computed again"
            )
            stack.close()
            remove_folder(locate(folder))
            workspace = opened()
        if workspace.unreadable:
            reasons = "; ".join(f"{shard}: {why}" for shard, why in workspace.unreadable.items())
            raise InputError(f"tables that cannot be read have no {what}; repair or remove them: {reasons}")
        yield workspace
