"""What reasons mean, in words for the page's reader."""

from __future__ import annotations

from typing import Final

from routelmt_batch.checks import rules
from routelmt_batch.rows import (
    EMPTY,
    EMPTY_OUTPUT,
    ENGINE_ERROR,
    ENGINE_KILLED,
    ESCALATED,
    FREED_PLACE,
    HYPOTHESIS_GOOD,
    LARGE_FAILED,
    NO_GAIN,
    NULL,
    PREDICTED_GOOD,
    SKIP_REASONS,
    TOO_LONG,
    TRUNCATED,
    UNKNOWN_LANGUAGE,
    VERIFIED_SMALL,
)

REASONS: Final = {
    EMPTY: "the source is empty",
    NULL: "the source is null",
    UNKNOWN_LANGUAGE: "a language code is not one of LMT's 60",
    TOO_LONG: "the prompt is longer than the router reads, or leaves a model no room to answer",
    ENGINE_ERROR: "the engine gave an error on every try",
    ENGINE_KILLED: "the engine died of the row, also when the row was sent alone",
    EMPTY_OUTPUT: "the model's output was empty on every try",
    LARGE_FAILED: "the large model failed; the small one's translation is used",
    TRUNCATED: "cut off before the model's end token",
    NO_GAIN: "the router failed on the row; the small model translated it",
    rules.COPIED_SOURCE: "the translation is a copy of its source",
    rules.REPETITION: "the translation repeats itself",
    rules.LENGTH_RATIO: "far too long or too short for its source",
    rules.WRONG_SCRIPT: "not in the target language's script",
    rules.WRONG_LANGUAGE: "not in the target language",
    rules.NOT_CHECKED: "the checks themselves failed on the row",
    PREDICTED_GOOD: "kept small: its quality was predicted to be good",
    HYPOTHESIS_GOOD: "kept small: its translation scored well",
    FREED_PLACE: "sent to large in place of a row that was kept small",
    ESCALATED: "sent to large: the small model's translation failed a check or scored low",
    VERIFIED_SMALL: "the large model's translation scored lower; the small one's is used",
}
_NOTES: Final = REASONS.keys() - {*SKIP_REASONS, ENGINE_ERROR, ENGINE_KILLED, EMPTY_OUTPUT, LARGE_FAILED}
KINDS: Final = ("failed", "quarantined", "fallback", "translated", "skipped")  # in the page's order


def kind(reason: str) -> str:
    """What happened to a row with this reason, one of KINDS; `failed` for an unknown reason."""
    if reason in SKIP_REASONS:
        return "skipped"
    if reason == ENGINE_KILLED:
        return "quarantined"
    if reason == LARGE_FAILED:
        return "fallback"
    return "translated" if reason in _NOTES else "failed"
