"""A router folder's card, `routelmt.json`: what the checkpoint beside it was trained for.

The checkpoint is an ordinary one for sequence classification (merged LoRA, one label, regression).
Nothing here loads weights.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from routelmt_batch.errors import ModelError
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.store import checkpoints

CARD = "routelmt.json"
UNKNOWN = "unknown"  # the value of what the labels do not record


class _Part(BaseModel):
    # Further keys (who trained it, how) are for people; a job ignores them.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class MetricName(_Part):
    name: str
    signature: str


class Model(_Part):
    name: str
    weights: str  # checkpoints.weights_hash, or unknown


class Scale(_Part):
    """target = mean + std x score, on the metric's x100 scale."""

    mean: float = 0.0
    std: float = 1.0


class Threshold(_Part):
    """A fraction p of the held-out rows, `reached` rows, scores at least `value`; of `traffic_rows` new rows,
    a share from `low` to `high` will (95%)."""

    value: float
    reached: int | None = None  # None in earlier calibrations, which must be repeated
    low: float
    high: float


class Calibration(_Part):
    rows: int
    traffic_rows: int
    thresholds: dict[str, Threshold]
    quantiles: tuple[float, ...]  # of the held-out scores, 0 to 100%

    def known(self) -> dict[Decimal, tuple[float, HeldOut]]:
        """Thresholds by wanted fraction, each with the held-out rows that it was set on."""
        return {
            Decimal(fraction): (threshold.value, HeldOut(self.rows, threshold.reached))
            for fraction, threshold in self.thresholds.items()
            if threshold.reached
        }


class Trained(_Part):
    max_length_tokens: int | None = None  # longer prompts were cut (encoders)


class RouterCard(_Part):
    kind: str
    target: str
    metric: MetricName
    prompt_template: str
    directions: tuple[str, ...]
    small_model: Model
    scale: Scale = Scale()
    calibration: Calibration | None = None
    training: Trained = Trained()

    @model_validator(mode="before")
    @classmethod
    def _kind_by_target(cls, value: Any) -> Any:
        """Cards of version 0.1 name only the target."""
        if isinstance(value, dict) and "kind" not in value:
            value = {**value, "kind": "routelmt-q" if value.get("target") == "quality" else "routelmt"}
        return value


def raw_card(source: str) -> dict[str, Any]:
    """The card's JSON with all its keys; empty if there is no card."""
    return checkpoints.config(source, CARD)


def read_card(source: str) -> RouterCard:
    """The card of a router folder or hub name.

    Raises:
        ModelError: there is no card, it is invalid, or the engine would misread the checkpoint.
    """
    raw = raw_card(source)
    if not raw:
        raise ModelError(
            f"router.source {source}: has no {CARD}, which defines what its scores mean. "
            "Give a router folder that `train` wrote"
        )
    try:
        card = RouterCard.model_validate(raw)
    except ValidationError as error:
        faults = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise ModelError(
            f"{source}/{CARD}: missing or wrong: {faults}. Give a router folder that `train` wrote"
        ) from None
    if checkpoints.config(source).get("problem_type") != "regression":
        raise ModelError(
            f"router.source {source}: config.json must contain problem_type: regression, or the engine "
            "applies a sigmoid to the score. Set it, or give a router folder that `train` wrote"
        )
    return card


def check_kind(source: str, card: RouterCard, kind: str) -> None:
    """Raises ModelError if the folder contains a router of another kind."""
    if card.kind != kind or (kind == "routelmt" and card.target != "gain"):
        raise ModelError(
            f"router.source {source}: predicts {card.target} (kind {card.kind}), but router.kind is {kind}. "
            f"Set router.kind: {card.kind}, or give another router"
        )


def check_small(source: str, card: RouterCard, small: str, weights: str) -> None:
    """Raises ModelError if the card says that the router was made for another small model."""
    if card.small_model.weights not in (UNKNOWN, weights):
        raise ModelError(
            f"router.source {source}: made for another small model ({card.small_model.name}, weights "
            f"{card.small_model.weights[:12]}) than {small} ({weights[:12]}), so its scores are meaningless "
            "here. Give the router of this small model"
        )


def check_prompt(source: str, card: RouterCard, template: str) -> None:
    """Raises ModelError if the router reads another prompt."""
    if card.prompt_template != template:
        raise ModelError(
            f"router.source {source}: trained with the prompt {json.dumps(card.prompt_template)}, but "
            f"prompt.template is {json.dumps(template)}. Set the router's, or give another router"
        )
