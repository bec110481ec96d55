"""Types of single values in a spec: paths, language codes, exact fractions, thresholds, guard modes; and the
names of values that a spec must not have."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from routelmt_batch.errors import UsageError
from routelmt_batch.files.hub import HubLocation
from routelmt_batch.files.uris import locate, without_login
from routelmt_batch.languages import hint, understood
from routelmt_batch.patience import seconds

COMET = "comet:"
Unit = Literal["calls", "tokens", "seconds", "cost"]
_UNITS: dict[str, Unit] = {"calls": "calls", "tokens": "tokens", "usd": "cost"}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?(calls|tokens|usd)")
# Words of names such as AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN, HF_TOKEN or VLLM_API_KEY. They are
# matched whole: TOKENIZERS_PARALLELISM holds no secret.
_SECRET = re.compile(
    r"(?:^|_)(?:secret|secrets|token|password|passwd|sas|credential|credentials|bearer|(?:access|account|api|"
    r"master|private|encryption|service_account|customer)_?key)(?:_|$)"
)
NOT_HERE = (
    "credentials do not belong in a spec, which is copied into outputs and to clusters. Put them where the "
    "job runs: into its environment, a role of the machine, or the files of the cloud's own tools"
)


def secrets(names: Iterable[str]) -> list[str]:
    """The names of those options or variables that hold credentials, by their words."""
    return [name for name in names if _SECRET.search(name.lower())]


def _is_located(uri: str) -> str:
    try:
        locate(uri)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"{without_login(uri)}: ")) from None
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


def _is_source(source: str) -> str:
    if source:  # a router may need none
        _is_located(source.removeprefix(COMET))
    return source


def _understood(code: str) -> str:
    known = understood(code)
    if known is None:
        raise ValueError(f"not one of LMT's 60 codes{hint(code)}")
    return known


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


def amount_of(text: str) -> tuple[Decimal, Unit]:
    """The number of an amount such as `200000calls`, `5000000tokens`, `3h` or `35usd`, and its unit.

    Raises:
        ValueError: it is not an amount.
    """
    if found := _AMOUNT.fullmatch(text.strip()):
        return Decimal(found[1]), _UNITS[found[2]]
    try:
        return Decimal(seconds(text.strip())), "seconds"
    except ValueError:
        raise ValueError(
            "give an amount with its unit: 200000calls, 5000000tokens, 35usd, or a duration such as 3h"
        ) from None


def _is_amount(value: object) -> object:
    if value is not None:
        amount_of(str(value))
    return value if value is None else str(value)


def _is_duration(value: object) -> str:
    seconds(str(value))
    return str(value)


# The title describes the type in docs/pages/spec-reference.md.
Uri = Annotated[str, AfterValidator(_is_located), Field(title="path or URI")]
# Checked as a whole: pydantic would report a wrong URI as a wrong list, too.
Uris = Annotated[str | Annotated[tuple[str, ...], Field(min_length=1)], AfterValidator(_are_located)]
OutputUri = Annotated[Uri, AfterValidator(_is_writable)]
Source = Annotated[str, AfterValidator(_is_source), Field(title="path, URI or hub name")]
Language = Annotated[str, AfterValidator(_understood), Field(title="language code")]
Fraction = Annotated[
    Decimal, BeforeValidator(_exact), Field(title="fraction, 0 to 1", ge=0, le=1, allow_inf_nan=False)
]
Duration = Annotated[str, BeforeValidator(_is_duration), Field(title="duration, such as `30m` or `1h30m`")]
Amount = Annotated[str, BeforeValidator(_is_amount), Field(title="amount, such as `200000calls` or `35usd`")]
GuardMode = Literal["off", "predicted", "hypothesis"]
Threshold = Annotated[
    float | Literal["calibrated"] | None,
    BeforeValidator(_calibrated_or_finite),
    Field(title="number, or `calibrated`"),
]
