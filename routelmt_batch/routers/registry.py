"""The router classes by `router.kind`, and how a router is opened."""

from __future__ import annotations

from typing import Final

from routelmt_batch.routers.baselines import (
    EntropyRouter,
    LengthRouter,
    RandomRouter,
    RarityRouter,
    SentinelRouter,
)
from routelmt_batch.routers.router import Router, Wanted
from routelmt_batch.routers.trained import EncoderRouter, RouteLMTRouter
from routelmt_batch.spec import PassSpec, Pool
from routelmt_batch.spec import Router as RouterSpec

ROUTERS: Final[dict[str, type[Router]]] = {
    "routelmt": RouteLMTRouter,
    "routelmt-q": RouteLMTRouter,
    "encoder": EncoderRouter,
    "length": LengthRouter,
    "rarity": RarityRouter,
    "entropy": EntropyRouter,
    "sentinel": SentinelRouter,
    "random": RandomRouter,
}
"""The names are those of `routelmt_batch.kinds.KINDS`."""


def open_router(
    spec: PassSpec, pool: RouterSpec, small: Pool | None, small_weights: str | None, key: str = "router"
) -> Router:
    """Open a router, checked against the prompt and the small model that it is used with.

    Args:
        small: the small model's pool, if there is one: rows too long for it are skipped.
        small_weights: checkpoints.weights_hash of the small model, if it is known.
        key: the router's key in the spec.

    Raises:
        ModelError: the router does not exist, is of another kind, or is made for another prompt or small
            model.
        InputError: its corpus does not exist, or has no text to count words in.
        UsageError: the quality environment that it runs in does not work.
    """
    kind = ROUTERS[pool.kind]
    if not kind.runs_a_model:
        pool = pool.model_copy(update={"gpus": 0})  # it would leave a GPU idle
    return kind.open(Wanted(key, pool, spec, small, small_weights))
