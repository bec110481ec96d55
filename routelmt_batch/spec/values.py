"""Types of single values in a spec: paths, language codes, exact fractions, thresholds, guard modes."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from routelmt_batch.errors import UsageError
from routelmt_batch.files.hub import HubLocation
from routelmt_batch.files.uris import locate


def _is_located(uri: str) -> str:
    try:
        locate(uri)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"{uri}: ")) from None
    return uri


def _are_located(uris: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(uris, str):
        return _is_located(uris)
    for uri in uris:
        try:
            locate(uri)
        except UsageError as error:
            raise ValueError(str(error)) from None
    return uris


def _is_writable(uri: str) -> str:
    if isinstance(locate(uri), HubLocation):
        raise ValueError("hf:// is read only: give a path, or a URI of an object store")
    return uri


def _exact(value: object) -> object:
    """Keep the text of a decimal fraction: 0.29 is 29 rows of 100, not 28."""
    if isinstance(value, bool):
        raise ValueError("give a number between 0 and 1")
    if isinstance(value, int | float):
        value = repr(value)
    try:
        return Decimal(str(value).strip())
    except InvalidOperation as error:
        raise ValueError("give a number between 0 and 1, such as 0.3") from error


def _calibrated_or_finite(value: object) -> object:
    if value is None or value == "calibrated":
        return value
    try:
        score = float(str(value))
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError("give a finite score, or `calibrated` for the router's own threshold")
    return score


# The title describes the type in docs/pages/spec-reference.md.
Uri = Annotated[str, AfterValidator(_is_located), Field(title="path or URI")]
# Checked as a whole: pydantic would report a wrong URI as a wrong list, too.
Uris = Annotated[str | Annotated[tuple[str, ...], Field(min_length=1)], AfterValidator(_are_located)]
OutputUri = Annotated[Uri, AfterValidator(_is_writable)]
Language = Annotated[str, Field(title="language code")]
Fraction = Annotated[
    Decimal, BeforeValidator(_exact), Field(title="fraction, 0 to 1", ge=0, le=1, allow_inf_nan=False)
]
GuardMode = Literal["off", "predicted", "hypothesis"]
Threshold = Annotated[
    float | Literal["calibrated"] | None,
    BeforeValidator(_calibrated_or_finite),
    Field(title="number, or `calibrated`"),
]
