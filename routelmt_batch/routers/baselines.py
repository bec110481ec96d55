"""Routers that are not trained on labels: the paper's baselines. Only the order of their scores matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pyarrow as pa

from routelmt_batch.corpus.shards import discover
from routelmt_batch.engines import quality
from routelmt_batch.engines.lanes import Mask
from routelmt_batch.errors import ModelError, UsageError
from routelmt_batch.files.write import sha256
from routelmt_batch.metrics.comet import SENTINEL
from routelmt_batch.metrics.metric import open_checkpoint
from routelmt_batch.routers.router import Router, Wanted
from routelmt_batch.routers.scorers import Entropy, Length, Random, Rarity
from routelmt_batch.routers.sentinel import Sentinel
from routelmt_batch.routers.word_counts import corpus_files
from routelmt_batch.store import checkpoints


@dataclass(frozen=True)
class RandomRouter(Router):
    """Draws a number for each row."""

    runs_a_model: ClassVar[bool] = False

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        return cls(wanted.pool, Random(wanted.pool.seed), wanted.prompter(wanted.small))

    def depends_on(self) -> dict[str, Any]:
        return {"router.seed": self.pool.seed}


@dataclass(frozen=True)
class LengthRouter(Router):
    """Counts tokens, with the small model's tokenizer unless another is named."""

    runs_a_model: ClassVar[bool] = False

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        pool = wanted.pool
        checkpoints.locate(pool.source, "router.source")
        scorer = Length(pool.source, pool.trust_remote_code)
        return cls(pool, scorer, wanted.prompter(wanted.small or pool))


@dataclass(frozen=True)
class EntropyRouter(Router):
    """Measures how unsure the small model, or another that is named, is of the first token."""

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        pool = wanted.pool
        checkpoints.locate(pool.source, "router.source")
        scorer = Entropy(pool.source, pool.dtype, pool.trust_remote_code)
        return cls(pool, scorer, wanted.prompter(wanted.small or pool))


@dataclass(frozen=True)
class RarityRouter(Router):
    """Counts words in a corpus. `open` reads only the footers of its files."""

    runs_a_model: ClassVar[bool] = False

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        column = wanted.spec.input.columns.source
        scorer = Rarity(corpus_files(wanted.pool.source, column), column)
        return cls(wanted.pool, scorer, wanted.prompter(wanted.small))

    def depends_on(self) -> dict[str, Any]:
        files = discover(self.pool.source, key="router.source")
        return {"router's corpus": [[name, sha256(path)] for name, path in files]}


@dataclass(frozen=True)
class SentinelRouter(Router):
    """Runs a COMET checkpoint that reads only the source, in the quality environment."""

    scorer: Sentinel

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        pool = wanted.pool
        opened = open_checkpoint(pool.source, pool, "router.source")
        if (opened.kind, opened.segments) not in ((SENTINEL, ("src",)), ("unified_metric", ("mt",))):
            raise ModelError(
                f"router.source {pool.source}: its class {opened.kind} reads {', '.join(opened.segments)}, "
                "but a router has only the source. Give a sentinel-src checkpoint, or a unified_metric with "
                "mt as its only segment, trained on sources"
            )
        environment = quality.check()
        if opened.kind == SENTINEL and not environment.has_sentinel:
            raise UsageError(
                f"router.source {pool.source}: its class {opened.kind} needs the package sentinel_metric, "
                "which the quality environment lacks. Clone https://github.com/SapienzaNLP/guardians-mt-eval "
                f"and run `{environment.python} -m pip install --no-deps -e guardians-mt-eval`"
            )
        return cls(pool, Sentinel(opened, environment.python), wanted.prompter(wanted.small))

    def depends_on(self) -> dict[str, Any]:
        return {"router's checkpoint": self.scorer.checkpoint.signature()}

    @property
    def cuts(self) -> Callable[[pa.Table], Mask]:
        return self.scorer.cuts

    @property
    def python(self) -> str:
        return self.scorer.python
