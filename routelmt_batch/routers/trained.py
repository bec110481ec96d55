"""Routers that `train` wrote: folders with a checkpoint and a card that says what it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from routelmt_batch.routers.card import RouterCard, check_kind, check_prompt, check_small, read_card
from routelmt_batch.routers.router import Router, Wanted
from routelmt_batch.routers.scorers import Encoder, Prefill
from routelmt_batch.store import checkpoints
from routelmt_batch.store.checkpoints import check_pool

_LONGEST_TOKENS = 512  # an encoder's limit if neither its card nor its configuration gives one


@dataclass(frozen=True)
class RouteLMTRouter(Router):
    """Predicts gain or quality from the prompt: kinds `routelmt` and `routelmt-q`, by the card's target."""

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        pool = wanted.pool
        check_pool(wanted.key, pool)
        card = _card(wanted)
        check_prompt(pool.source, card, wanted.spec.prompt.template)
        scorer = Prefill(
            pool.source, pool.dtype, pool.trust_remote_code, pool.max_num_batched_tokens, pool.max_num_seqs
        )
        return cls(pool, scorer, wanted.prompter(wanted.small or pool), card)

    def prompt_limit(self, tokens: int) -> int:
        return min(tokens, self.pool.max_model_len_tokens)


@dataclass(frozen=True)
class EncoderRouter(Router):
    """Predicts with an encoder. It makes the prompt from its card's template, and cuts long prompts."""

    scorer: Encoder

    @classmethod
    def open(cls, wanted: Wanted) -> Self:
        pool = wanted.pool
        checkpoints.locate(pool.source, "router.source")
        card = _card(wanted)
        longest = card.training.max_length_tokens or checkpoints.context_tokens(pool.source)
        scorer = Encoder(
            pool.source, card.prompt_template, longest or _LONGEST_TOKENS, pool.trust_remote_code
        )
        return cls(pool, scorer, wanted.prompter(wanted.small), card)

    def depends_on(self) -> dict[str, Any]:
        return super().depends_on() | {
            "router's prompt": self.scorer.template,
            "router's longest prompt in tokens": self.scorer.max_length_tokens,
        }


def _card(wanted: Wanted) -> RouterCard:
    """The folder's card. Raises ModelError if it is of another kind or made for another small model."""
    source, small = wanted.pool.source, wanted.small
    card = read_card(source)
    check_kind(source, card, wanted.pool.kind)
    if wanted.small_weights is not None:
        check_small(source, card, small.source if small else "the labels'", wanted.small_weights)
    return card
