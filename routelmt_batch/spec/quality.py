"""The parts that judge translations: metric, guard, audit, checks."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from routelmt_batch.languages import is_direction
from routelmt_batch.spec.parts import Part, Pool, Router
from routelmt_batch.spec.values import COMET, Fraction, GuardMode, Source


class Metric(Pool):
    """The metric that measures quality, and its pool of engines. A source alone is enough: `metric: chrf`.

    A forward pass of COMET takes at most `max_num_seqs` rows, and no more rows than fit in
    `max_num_batched_tokens` if every text were as long as COMET reads.
    """

    source: Source = Field(
        "chrf",
        title="text",
        description="`chrf`, or `comet:` and a folder or `.ckpt` file, on a disk or in an object store, or a "
        "Hugging Face name. `chrf` needs `input.columns.reference`.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "float32", description="Number format of the encoder's weights. `auto` is float32."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: object) -> object:
        given = {"source": value} if isinstance(value, str) else value
        if isinstance(given, dict) and given.get("source", "chrf") == "chrf":
            given = {"gpus": 0, **given}  # chrf would reserve a GPU and not use it
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
        """The part of `source` after `comet:`."""
        return self.source.removeprefix(COMET)


def _for_quality(value: object) -> object:
    return {"kind": "routelmt-q", **value} if isinstance(value, dict) else value


class Guard(Part):
    """Which calls to the large model are saved or moved to other rows (paper, section on severe losses).
    Qualities are on the metric's x100 scale."""

    mode: GuardMode = Field(
        "off",
        description="`hypothesis`: planned rows whose small translation scores well stay small. `predicted`: "
        "planned rows whose small translation is predicted to be good stay small. `off`: no guard.",
    )
    candidates: float = Field(
        2.0,
        ge=1,
        allow_inf_nan=False,
        description="Rows that the guard looks at, as a multiple of the planned rows. Rows with the highest "
        "gain come first.",
    )
    keep_small_above: float | None = Field(
        None,
        allow_inf_nan=False,
        description="A row stays small if its quality is above this. `hypothesis` and `predicted` need it.",
    )
    verify: bool = Field(
        False,
        description="Translate every routed row with both models, measure both, and keep the small "
        "translation if it is better.",
    )
    margin: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="With `verify`: by how much the large translation may score lower and still be kept.",
    )
    escalate_fraction: Fraction = Field(
        Decimal(0),
        description="Share of the rows, taken from the budget, for doubtful small translations. "
        "The large model translates them again.",
    )
    escalate_below: float | None = Field(
        None,
        allow_inf_nan=False,
        description="A small translation that scores below this is doubtful, like one that fails a check. "
        "Needs a metric.",
    )
    router: Annotated[Router | None, BeforeValidator(_for_quality)] = Field(
        None,
        description="The quality router of `mode: predicted`. Its kind is `routelmt-q`.",
    )

    @property
    def hypotheses(self) -> bool:
        """Whether the small model also translates the rows of the large model."""
        return self.mode == "hypothesis" or self.verify

    @property
    def verify_margin(self) -> float | None:
        """By how much the large translation may score lower and still be kept; None without `verify`."""
        return self.margin if self.verify else None

    @property
    def measures(self) -> bool:
        """Whether the guard needs a metric."""
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
                f"router.kind {self.router.kind}: the guard's router must predict quality: use routelmt-q"
            )
        if self.escalate_below is not None and not self.escalate_fraction:
            raise ValueError(
                "escalate_below needs escalate_fraction: the share of the rows that may escalate"
            )
        return self


class Audit(Part):
    """A sample of rows that both models translate and the metric scores. It compares predicted with
    realised gains. Its calls to the large model come on top of the budget."""

    fraction: Fraction = Field(Decimal(0), description="Share of the rows in the sample. 0: no audit.")
    min_rows: int = Field(200, ge=1, description="Fewest rows in the sample.")
    max_rows: int = Field(20_000, ge=1, description="Most rows in the sample.")
    seed: int = Field(0, description="Seed of the sample. The same seed and input give the same rows.")

    @model_validator(mode="after")
    def _bounds(self) -> Audit:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is more than max_rows {self.max_rows}")
        return self


class Checks(Part):
    """Bounds beyond which a translation is doubtful. Lengths are in characters. A letter of Chinese,
    Japanese or Korean counts as two letters."""

    enabled: bool = Field(True, description="Check every translation.")
    replicas: int = Field(1, ge=1, description="Checking processes, each with one CPU.")
    copied_min_letters: int = Field(
        10,
        ge=1,
        description="Fewest letters of a source that is checked for a copy. Words with a capital letter do "
        "not count, because they may be names.",
    )
    repetition_excess: float = Field(
        0.4,
        gt=0,
        le=1,
        description="By how much the share of repeated 8-grams of characters may be larger in the "
        "translation than in its source.",
    )
    length_factor: float = Field(
        2.0,
        gt=1,
        allow_inf_nan=False,
        description="How many times longer or shorter than usual for the two scripts a translation may be.",
    )
    length_slack_chars: int = Field(
        10, ge=0, description="Characters that a length may be outside its bounds."
    )
    length_ratios: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        title="mapping of direction to [low, high]",
        description="Bounds of translation length to source length for single directions, such as "
        "`{en-zh: [0.1, 0.8]}`. They replace `length_factor`.",
    )
    language_min_letters: int = Field(
        10, ge=1, description="Fewest letters of a translation whose language is checked."
    )
    min_script_share: float = Field(
        0.1, ge=0, le=1, description="Lowest share of letters in the target language's scripts."
    )
    min_language_probability: float = Field(
        0.05, ge=0, le=1, description="Lowest probability of the target language."
    )

    @model_validator(mode="after")
    def _directions_and_bounds(self) -> Checks:
        for direction, (low, high) in self.length_ratios.items():
            if not is_direction(direction):
                raise ValueError(
                    f"length_ratios: {direction!r} is not a direction in LMT's codes, such as en-zh"
                )
            if not 0 <= low < high:
                raise ValueError(f"length_ratios.{direction}: [{low}, {high}] is not 0 <= low < high")
        return self
