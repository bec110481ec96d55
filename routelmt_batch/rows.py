"""Stages, the rows that each commits, and the words that rows carry. It imports nothing of ours."""

from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

Route = Literal["small", "large"]
SMALL: Final = "small"
LARGE: Final = "large"

# Statuses of an output row; every input row leaves with exactly one.
OK: Final = "ok"
FALLBACK: Final = "fallback"
FAILED: Final = "failed"
QUARANTINED: Final = "quarantined"
SKIPPED: Final = "skipped"
STATUSES: Final = (OK, FALLBACK, FAILED, QUARANTINED, SKIPPED)

# Why a row is skipped: nothing to translate, or not translatable here.
EMPTY: Final = "empty"
NULL: Final = "null"
UNKNOWN_LANGUAGE: Final = "unknown_language"
TOO_LONG: Final = "too_long"
SKIP_REASONS: Final = (EMPTY, NULL, UNKNOWN_LANGUAGE, TOO_LONG)

# Other reasons.
TRUNCATED: Final = "truncated"
EMPTY_OUTPUT: Final = "empty_output"
ENGINE_ERROR: Final = "engine_error"
ENGINE_KILLED: Final = "engine_killed"  # the engine died of the row alone: it is quarantined
LARGE_FAILED: Final = "large_failed"  # of a fallback
NOT_A_NUMBER: Final = "not_a_number"  # of a score
NO_REFERENCE: Final = "no_reference"  # of a row to be labelled
UNTRANSLATABLE: Final = (*SKIP_REASONS, NO_REFERENCE)
NO_GAIN: Final = "no_gain"  # the router failed on the row; the small model translates it

# What a guard decides.
ROUTE: Final = "route"
ESCALATE: Final = "escalate"

# Why a row's route is another than its planned one, or its small translation stands.
PREDICTED_GOOD: Final = "predicted_good"  # the small model's quality, predicted from the prompt
HYPOTHESIS_GOOD: Final = "hypothesis_good"  # the quality of the small model's translation
FREED_PLACE: Final = "freed_place"  # the row has the place of one that stays small
ESCALATED: Final = "escalated"  # the small model's translation failed a check or scored low
NO_TRANSLATION: Final = "no_translation"  # of a table's row that is to be measured
VERIFIED_SMALL: Final = "verified_small"  # the large model's translation scored lower
PREDICTED: Final = "predicted"  # whose quality: what the router predicts of the small model's


@dataclass(frozen=True)
class Stage:
    """One kind of committed work.

    Args:
        name: of the folder that holds its parts.
        schema: of their rows.
        answer: the column that is null (or NaN) where a row has no answer; its `reason` says why.
        sums: numbers that are added up over a part's rows.
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

SCORES: Final = Stage(
    "scores",
    pa.schema(
        [
            *_ROW,
            pa.field("gain", pa.float32()),
            pa.field("prompt_tokens", pa.int32()),
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
        pa.field("status", pa.string(), nullable=False),  # ok, failed or quarantined: of this model's attempt
        pa.field("reason", pa.string()),
    ]
)
TRANSLATIONS: Final = Stage(
    "translations", _TRANSLATIONS, answer="translation", sums=("prompt_tokens", "output_tokens")
)

# What is doubtful about a translation, as far as its text shows.
CHECKS: Final = Stage(
    "checks", pa.schema([*_ROW, _ROUTE, pa.field("reasons", pa.list_(pa.string()), nullable=False)])
)

_QUALITY: Final = pa.schema(
    [
        *_ROW,
        _ROUTE,
        pa.field("quality", pa.float64()),  # x100 scale
        pa.field("reason", pa.string()),
    ]
)
QUALITY: Final = Stage("quality", _QUALITY, answer="quality", sums=("cut",))

# What the guard changed: the model that a row's call goes to, why, and the number that decided it.
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

STAGES: Final = {
    stage.name: stage
    for stage in (
        SCORES,
        TRANSLATIONS,
        CHECKS,
        QUALITY,
        DECISIONS,
        SAMPLE,
        AUDIT_TRANSLATIONS,
        AUDIT_QUALITY,
    )
}

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

LABEL_FIELDS: Final = (
    pa.field("translation_small", pa.string()),
    pa.field("translation_large", pa.string()),
    pa.field("quality_small", pa.float64()),
    pa.field("quality_large", pa.float64()),
    pa.field("gain", pa.float64()),
)
LABEL_NAMES: Final = tuple(field.name for field in LABEL_FIELDS)
LABEL_METADATA: Final = b"routelmt"  # key of a label table's signature in its Parquet schema
