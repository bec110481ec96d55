"""A router, checked and ready to score: what runs it, what its scores mean, what they depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from routelmt_batch.atomic import sha256
from routelmt_batch.corpus.shards import discover
from routelmt_batch.engines import quality
from routelmt_batch.engines.lanes import Scorer
from routelmt_batch.errors import ModelError, UsageError
from routelmt_batch.kinds import CORPUS, KINDS, ROUTER_FOLDER, SMALL_MODEL, Kind
from routelmt_batch.metrics.comet import SENTINEL
from routelmt_batch.metrics.metric import open_checkpoint
from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.routers.card import (
    UNKNOWN,
    RouterCard,
    Scale,
    check_kind,
    check_prompt,
    check_small,
    read_card,
)
from routelmt_batch.routers.scorers import (
    Encoder,
    Entropy,
    Length,
    Prefill,
    Random,
    Rarity,
)
from routelmt_batch.routers.sentinel import Sentinel
from routelmt_batch.routers.words import corpus_files
from routelmt_batch.spec import PassSpec, Pool
from routelmt_batch.spec import Router as RouterSpec
from routelmt_batch.store import checkpoints
from routelmt_batch.store.manifest import of_pool


@dataclass(frozen=True)
class Router:
    """`tokenizer` names the model by whose tokens a row is too long; without one no row is."""

    pool: RouterSpec
    kind: Kind
    card: RouterCard | None
    scorer: Scorer
    tokenizer: Pool | None

    @property
    def scale(self) -> Scale:
        """score = mean + std x what the model says; higher for the large model."""
        found = self.card.scale if self.card else Scale()
        if self.card and self.card.target == "quality":
            # It predicts the small model's quality: where that is low, the large one is called.
            return Scale(mean=-found.mean, std=-found.std)
        return found

    @property
    def predicts_gain(self) -> bool:
        """Whether scores are gains, in points of the metric; else only their order means something."""
        return self.kind.gains and (self.card is None or self.card.target == "gain")

    def doubts(self, name: str, directions: Iterable[str]) -> list[str]:
        """A warning, under a name, if some rows are of directions (`en-de`) that it was not trained on.
        Rows of a language that LMT does not know have no score, and do not count."""
        scored = [one for one in directions if LANGUAGES.keys() >= set(one.split("-"))]
        unseen = [one for one in scored if self.card and one not in self.card.directions]
        return [f"{name}: not trained on {', '.join(unseen)}; its scores there are a guess"] if unseen else []

    @property
    def warnings(self) -> list[str]:
        """What of its fit could not be checked."""
        if not self.card or self.card.small_model.weights != UNKNOWN:
            return []
        return [
            f"router {self.pool.source} was trained on labels that do not say which small model they are of: "
            "whether it fits this one is not checked"
        ]

    def describe(self) -> str:
        if not self.card:
            return f"{self.pool.kind} {self.pool.source}".strip()
        card = self.card
        return f"{self.pool.source} ({card.target} in {card.metric.name}, {', '.join(card.directions)})"

    def fingerprint(self) -> dict[str, Any]:
        """What its scores depend on, by name."""
        found: dict[str, Any] = {"router.kind": self.pool.kind}
        if self.kind.source in (ROUTER_FOLDER, SMALL_MODEL):
            found |= of_pool("router", self.pool)
        elif self.kind.source == CORPUS:
            files = discover(self.pool.source, key="router.source")
            found["router's corpus"] = [[name, sha256(path)] for name, path in files]
        elif isinstance(self.scorer, Sentinel):
            found["router's checkpoint"] = self.scorer.checkpoint.signature()
        if isinstance(self.scorer, Encoder):
            found["router's prompt"] = self.scorer.template
            found["router's longest prompt in tokens"] = self.scorer.max_length_tokens
        if self.pool.kind == "random":
            found["router.seed"] = self.pool.seed
        return found | {"router's scale": self.scale.model_dump()}


def open_router(spec: PassSpec, pool: RouterSpec, small: Pool | None, small_weights: str | None) -> Router:
    """Check a router against the prompt and the small model that it is to be used with.

    Args:
        small: the small model's pool, where one is at hand: rows too long for it are skipped.
        small_weights: checkpoints.weights_hash of the small model, where it is known.

    Raises:
        ModelError: the router is not there, of another kind, or made for something else.
        InputError: its corpus is not there, or has no text to count words in.
    """
    kind = KINDS[pool.kind]
    card = None
    if kind.source == ROUTER_FOLDER:
        checkpoints.locate(pool.source, "router.source")
        card = read_card(pool.source)
        check_kind(pool.source, card, pool.kind)
        if small_weights is not None:
            check_small(pool.source, card, small.source if small else "the labels'", small_weights)
        if kind.engine == "prefill":
            check_prompt(pool.source, card, spec.prompt.template)
    elif kind.source == SMALL_MODEL:
        checkpoints.locate(pool.source, "router.source")
    tokenizer = small
    if small is None and pool.kind != "encoder" and kind.source in (ROUTER_FOLDER, SMALL_MODEL):
        tokenizer = pool
    scorer = _scorer(pool, card, spec.input.columns.source)
    if not kind.on_gpu:
        pool = pool.model_copy(update={"gpus": 0})  # it would hold one and leave it idle
    return Router(pool, kind, card, scorer, tokenizer)


def _scorer(pool: RouterSpec, card: RouterCard | None, column: str) -> Scorer:
    match pool.kind:
        case "routelmt" | "routelmt-q":
            return Prefill(
                pool.source,
                pool.dtype,
                pool.trust_remote_code,
                pool.max_num_batched_tokens,
                pool.max_num_seqs,
            )
        case "random":
            return Random(pool.seed)
        case "length":
            return Length(pool.source, pool.trust_remote_code)
        case "rarity":
            return Rarity(corpus_files(pool.source, column), column)
        case "entropy":
            return Entropy(pool.source, pool.dtype, pool.trust_remote_code)
        case "encoder":
            assert card
            longest = card.training.max_length_tokens or checkpoints.context_tokens(pool.source) or 512
            return Encoder(pool.source, card.prompt_template, longest, pool.trust_remote_code)
        case "sentinel":
            return _sentinel(pool)
    raise UsageError(f"router.kind {pool.kind}: needs references, for evaluation only")


def _sentinel(pool: RouterSpec) -> Sentinel:
    found = open_checkpoint(pool.source, pool, "router.source")
    if (found.kind, found.segments) not in ((SENTINEL, ("src",)), ("unified_metric", ("mt",))):
        raise ModelError(
            f"router.source {pool.source}: its class {found.kind} reads {', '.join(found.segments)}, and a "
            "router has the source alone. Give a sentinel-src checkpoint, or a unified_metric with the one "
            "segment mt, trained on sources"
        )
    environment = quality.check()
    if found.kind == SENTINEL and not environment.has_sentinel:
        raise UsageError(
            f"router.source {pool.source}: its class {found.kind} is of the package sentinel_metric, which "
            "the quality environment lacks. Clone https://github.com/SapienzaNLP/guardians-mt-eval and run "
            f"`{environment.python} -m pip install --no-deps -e guardians-mt-eval`"
        )
    return Sentinel(found, environment.python)
