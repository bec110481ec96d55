"""The parts that judge translations: metric, guard, audit, checks."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.spec.parts import Part, Pool, Router
from routelmt_batch.spec.values import Fraction, GuardMode

COMET = "comet:"


class Metric(Pool):
    """What quality is measured with: `chrf`, or `comet:<folder, .ckpt file or hub name>`.

    A forward pass of COMET takes `max_num_seqs` rows at most, and no more than `max_num_batched_tokens`
    hold were every text as long as COMET reads.
    """

    source: str = "chrf"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = (
        "float32"  # as COMET runs by itself; so does auto
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: object) -> object:
        given = {"source": value} if isinstance(value, str) else value
        if isinstance(given, dict) and given.get("source", "chrf") == "chrf":
            given = {"gpus": 0, **given}  # it would hold one and leave it idle
        return given

    @model_validator(mode="after")
    def _known_metric(self) -> Metric:
        if self.source != "chrf" and not self.source.startswith(COMET):
            raise ValueError(f"unknown metric {self.source!r}: use chrf, or comet:<folder or hub name>")
        if (self.gpus or 0) > 1:
            raise ValueError("a metric runs on one GPU at most: set replicas, not gpus")
        return self

    @property
    def checkpoint(self) -> str:
        """What follows `comet:`."""
        return self.source.removeprefix(COMET)


def _for_quality(value: object) -> object:
    return {"kind": "routelmt-q", **value} if isinstance(value, dict) else value


class Guard(Part):
    """Which calls to the large model are saved or moved (paper, section on severe losses). Qualities
    are on the metric's x100 scale."""

    mode: GuardMode = "off"
    # The rows that the mode looks at: this many times the planned ones, by gain.
    candidates: float = Field(2.0, ge=1, allow_inf_nan=False)
    keep_small_above: float | None = Field(None, allow_inf_nan=False)
    verify: bool = False
    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    escalate_fraction: Fraction = Decimal(0)
    escalate_below: float | None = Field(None, allow_inf_nan=False)
    router: Annotated[Router | None, BeforeValidator(_for_quality)] = None

    @property
    def hypotheses(self) -> bool:
        """Whether the small model translates the rows of the large one, too."""
        return self.mode == "hypothesis" or self.verify

    @property
    def verify_margin(self) -> float | None:
        """By how much the large translation may score lower and still stand; None: however much."""
        return self.margin if self.verify else None

    @property
    def measures(self) -> bool:
        """Whether it needs a metric."""
        return self.hypotheses or self.escalate_below is not None

    @model_validator(mode="after")
    def _whole(self) -> Guard:
        on = self.mode != "off"
        for wanted, by, key in (
            (on, f"mode: {self.mode}", "keep_small_above"),
            (self.mode == "predicted", "mode: predicted", "router"),
        ):
            if wanted and getattr(self, key) is None:
                raise ValueError(f"{by} needs {key}")
        if self.router is not None and self.router.kind != "routelmt-q":
            raise ValueError(
                f"router.kind {self.router.kind}: the guard's router predicts quality: routelmt-q"
            )
        if self.escalate_below is not None and not self.escalate_fraction:
            raise ValueError("escalate_below needs escalate_fraction: the places that it may give")
        return self


class Audit(Part):
    """A sample that both models translate and the metric scores, to hold predicted gains against
    realised ones. Its calls to the large model are its own cost, beside the budget."""

    fraction: Fraction = Decimal(0)
    min_rows: int = Field(200, ge=1)
    max_rows: int = Field(20_000, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _bounds(self) -> Audit:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is more than max_rows {self.max_rows}")
        return self


class Checks(Part):
    """Bounds beyond which a translation is doubtful. Lengths are in characters; a letter of Chinese,
    Japanese or Korean counts as two letters."""

    enabled: bool = True
    replicas: int = Field(1, ge=1)  # actors of one CPU
    copied_min_letters: int = Field(10, ge=1)  # of words without a capital: the rest may be names
    # How much larger the share of repeated 8-grams may be in a translation than in its source.
    repetition_excess: float = Field(0.4, gt=0, le=1)
    # Characters of translation to one of source: from 1/factor to factor times what is usual for the scripts.
    length_factor: float = Field(2.0, gt=1, allow_inf_nan=False)
    length_slack_chars: int = Field(10, ge=0)
    length_ratios: dict[str, tuple[float, float]] = Field(
        default_factory=dict
    )  # of a direction: {en-zh: [0.1, 0.8]}
    language_min_letters: int = Field(10, ge=1)  # shorter texts have no language
    min_script_share: float = Field(0.1, ge=0, le=1)  # of letters in the target language's scripts
    min_language_probability: float = Field(0.05, ge=0, le=1)  # of the target language

    @model_validator(mode="after")
    def _directions_and_bounds(self) -> Checks:
        for direction, (low, high) in self.length_ratios.items():
            if not set(direction.split("-")) <= LANGUAGES.keys() or direction.count("-") != 1:
                raise ValueError(
                    f"length_ratios: {direction!r} is no direction such as en-zh, in LMT's codes"
                )
            if not 0 <= low < high:
                raise ValueError(f"length_ratios.{direction}: [{low}, {high}] is not 0 <= low < high")
        return self
