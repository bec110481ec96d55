"""RouteLMT's router folder: the checkpoint that predicts a gain, and its card `routelmt.json`.

The checkpoint is an ordinary sequence-classification one (merged LoRA, one label, regression);
the card says what it was trained for. Nothing here loads weights.
"""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, ValidationError

from routelmt_batch import checkpoints
from routelmt_batch.errors import ModelError
from routelmt_batch.spec import JobSpec

CARD = "routelmt.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Metric(_Part):
    name: str
    signature: str


class SmallModel(_Part):
    name: str
    weights: str  # checkpoints.weights_hash of the model that the router was adapted from


class Scale(_Part):
    """gain = mean + std x score, on the metric's x100 scale."""

    mean: float = 0.0
    std: float = 1.0


class RouterCard(_Part):
    target: str
    metric: Metric
    prompt_template: str
    directions: tuple[str, ...]
    small_model: SmallModel
    scale: Scale = Scale()


def read_card(spec: JobSpec) -> RouterCard:
    """The router's card, checked against the spec.

    Raises:
        ModelError: no card or not a valid one; a router that predicts something else than gain,
            or was made for another small model or another prompt.
    """
    source = spec.router.source
    raw = checkpoints.config(source, CARD)
    if not raw:
        raise ModelError(
            f"router.source {source}: no {CARD} there, so nothing says what its scores mean. "
            "Give a router folder as `train` writes it"
        )
    try:
        card = RouterCard.model_validate(raw)
    except ValidationError as error:
        faults = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise ModelError(f"{source}/{CARD}: missing or wrong: {faults}") from None
    if card.target != "gain":
        raise ModelError(f"router.source {source}: predicts {card.target}, and a job routes by gain")
    if checkpoints.config(source).get("problem_type") != "regression":
        raise ModelError(
            f"router.source {source}: config.json must say problem_type: regression; without it the "
            "engine puts a sigmoid on the score"
        )
    small = spec.models.small.source
    if checkpoints.weights_hash(small) != card.small_model.weights:
        raise ModelError(
            f"router.source {source}: made for another small model ({card.small_model.name}, weights "
            f"{card.small_model.weights[:12]}) than models.small.source {small} "
            f"({checkpoints.weights_hash(small)[:12]}). Its gains would mean nothing: give the router "
            "of this small model"
        )
    if card.prompt_template != spec.prompt.template:
        raise ModelError(
            f"router.source {source}: trained with the prompt {json.dumps(card.prompt_template)}, and "
            f"prompt.template is {json.dumps(spec.prompt.template)}: make them one"
        )
    return card
