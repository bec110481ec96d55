"""Stages, the schemas of their rows, and rows' statuses and reasons. It imports nothing of the package."""

from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

Route = Literal["small", "large"]
SMALL: Final = "small"
LARGE: Final = "large"

# Statuses of an output row; every input row gets exactly one.
OK: Final = "ok"
FALLBACK: Final = "fallback"
FAILED: Final = "failed"
QUARANTINED: Final = "quarantined"
SKIPPED: Final = "skipped"
STATUSES: Final = (OK, FALLBACK, FAILED, QUARANTINED, SKIPPED)

# Why a row is skipped: there is nothing to translate, or it cannot be translated here.
EMPTY: Final = "empty"
NULL: Final = "null"
UNKNOWN_LANGUAGE: Final = "unknown_language"
TOO_LONG: Final = "too_long"
SKIP_REASONS: Final = (EMPTY, NULL, UNKNOWN_LANGUAGE, TOO_LONG)

# Other reasons.
TRUNCATED: Final = "truncated"
EMPTY_OUTPUT: Final = "empty_output"
ENGINE_ERROR: Final = "engine_error"
ENGINE_KILLED: Final = "engine_killed"  # the row alone kills the engine: it is quarantined
LARGE_FAILED: Final = "large_failed"  # a fallback: the large model failed on the row
NOT_A_NUMBER: Final = "not_a_number"  # the score is NaN
NO_REFERENCE: Final = "no_reference"  # the row cannot be labelled without a reference
UNTRANSLATABLE: Final = (*SKIP_REASONS, NO_REFERENCE)
NO_GAIN: Final = "no_gain"  # the router failed on the row; the small model translates it
HASH_COLLISION: Final = (
    "hash_collision"  # the row was folded with another text by a collision of their hashes
)

# A guard's decisions.
ROUTE: Final = "route"
ESCALATE: Final = "escalate"

# Why a row's route differs from its planned one, or its small translation is kept.
PREDICTED_GOOD: Final = "predicted_good"  # the small model's quality, predicted from the prompt, is good
HYPOTHESIS_GOOD: Final = "hypothesis_good"  # the small model's translation scored well
FREED_PLACE: Final = "freed_place"  # the row gets the place of a row that stays small
ESCALATED: Final = "escalated"  # the small model's translation failed a check or scored low
NO_TRANSLATION: Final = "no_translation"  # a table's row to be measured has no translation
VERIFIED_SMALL: Final = "verified_small"  # the large model's translation scored lower
PREDICTED: Final = "predicted"  # the lane of qualities that a router predicts for the small model


@dataclass(frozen=True)
class Stage:
    """One kind of committed work.

    Args:
        name: the folder that holds its parts.
        schema: the columns of its rows.
        answer: the column that is null (or NaN) if a row has no answer; the row's `reason` says why.
        sums: numbers that are summed over a part's rows.
    """

    name: str
    schema: pa.Schema
    answer: str | None = None
    sums: tuple[str, ...] = ()


_ROW: Final = (
    pa.field("shard", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
)
_ROUTE: Final = pa.field("route", pa.string(), nullable=False)

# Rows with the same text and languages are one call, made for the first of them, which the others follow.
# There is a line for each row that is not the only one of its call. `position` is the row's place among all
# rows of the job, `first` that of the row that it follows (null: it follows none), and `copies` the rows of
# the call (0 for a row that follows).
FOLDS: Final = Stage(
    "folds",
    pa.schema(
        [
            *_ROW,
            pa.field("position", pa.int64(), nullable=False),
            pa.field("first", pa.int64()),
            pa.field("copies", pa.int64(), nullable=False),
        ]
    ),
)

SCORES: Final = Stage(
    "scores",
    pa.schema(
        [
            *_ROW,
            pa.field("gain", pa.float32()),
            pa.field("prompt_tokens", pa.int32()),
            pa.field("direction", pa.int16()),  # see directions.numbers
            pa.field("reason", pa.string()),
        ]
    ),
    answer="gain",
    sums=("cut", "prompt_tokens"),
)

_TRANSLATIONS: Final = pa.schema(
    [
        *_ROW,
        _ROUTE,
        pa.field("translation", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("status", pa.string(), nullable=False),  # of this model's attempt: ok, failed or quarantined
        pa.field("reason", pa.string()),
    ]
)
TRANSLATIONS: Final = Stage(
    "translations", _TRANSLATIONS, answer="translation", sums=("prompt_tokens", "output_tokens")
)

# Reasons to doubt a translation that are found in its text.
CHECKS: Final = Stage(
    "checks", pa.schema([*_ROW, _ROUTE, pa.field("reasons", pa.list_(pa.string()), nullable=False)])
)

_QUALITY: Final = pa.schema(
    [
        *_ROW,
        _ROUTE,
        pa.field("quality", pa.float64()),  # x100 scale; of a row with references, the mean over them
        pa.field("by_reference", pa.list_(pa.float64())),
        pa.field("reason", pa.string()),
    ]
)
QUALITY: Final = Stage("quality", _QUALITY, answer="quality", sums=("cut",))

# The guard's changes: the model that translates a row, why, and the value that decided it.
DECISIONS: Final = Stage(
    "guard",
    pa.schema(
        [
            *_ROW,
            pa.field("call", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("value", pa.float32()),
        ]
    ),
)

# Rows that both models translate, to audit the router: the model whose translation is in the output, the
# direction, the predicted gain, and the source's tokens by the small model's tokenizer.
SAMPLE: Final = Stage(
    "audit",
    pa.schema(
        [
            *_ROW,
            _ROUTE,
            pa.field("direction", pa.string(), nullable=False),
            pa.field("gain", pa.float32(), nullable=False),
            pa.field("source_tokens", pa.int32(), nullable=False),
        ]
    ),
)
AUDIT_TRANSLATIONS: Final = Stage(
    "audit_translations", _TRANSLATIONS, answer=TRANSLATIONS.answer, sums=TRANSLATIONS.sums
)
AUDIT_QUALITY: Final = Stage("audit_quality", _QUALITY, answer=QUALITY.answer, sums=QUALITY.sums)

OUTPUT_FIELDS: Final = (
    pa.field("translation", pa.string()),
    pa.field("route", pa.string()),
    pa.field("planned_route", pa.string()),
    pa.field("predicted_gain", pa.float32()),
    pa.field("status", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("output_tokens", pa.int32()),
)
OUTPUT_NAMES: Final = tuple(field.name for field in OUTPUT_FIELDS)

# The output of rows that follow another, and why its translation is doubtful.
FOLLOWERS: Final = Stage(
    "followers", pa.schema([*_ROW, *OUTPUT_FIELDS, pa.field("doubts", pa.list_(pa.string()))])
)

STAGES: Final = {
    stage.name: stage
    for stage in (
        FOLDS,
        SCORES,
        TRANSLATIONS,
        CHECKS,
        QUALITY,
        DECISIONS,
        SAMPLE,
        AUDIT_TRANSLATIONS,
        AUDIT_QUALITY,
        FOLLOWERS,
    )
}

LABEL_FIELDS: Final = (
    pa.field("translation_small", pa.string()),
    pa.field("translation_large", pa.string()),
    pa.field("quality_small", pa.float64()),
    pa.field("quality_large", pa.float64()),
    pa.field("gain", pa.float64()),
    pa.field("gain_by_reference", pa.list_(pa.float64())),
)
LABEL_NAMES: Final = tuple(field.name for field in LABEL_FIELDS)
LABEL_METADATA: Final = b"routelmt"  # key of a label table's signature in its Parquet schema
