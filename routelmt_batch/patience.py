"""How long something that does not answer is waited for. It knows no engine."""

from __future__ import annotations

import re
from typing import NamedTuple

_DURATION = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")


class Patience(NamedTuple):
    """Seconds without an answer: of an engine with rows in it, and of one that starts."""

    stall_s: float = 1800.0
    start_s: float = 3600.0


PATIENCE = Patience()


class Silence:
    """How long a value has not changed. It adds up the caller's own waits: time in which the machine slept,
    or in which this process was stopped, does not count."""

    def __init__(self) -> None:
        self._value: object = None
        self._seconds = 0.0

    def after(self, waited_s: float, value: object) -> float:
        """Seconds without a change, after a further wait of `waited_s`."""
        self._seconds = self._seconds + waited_s if value == self._value else 0.0
        self._value = value
        return self._seconds


def seconds(duration: str) -> int:
    """The seconds of a duration such as `1h30m`, `90m` or `45s`.

    Raises:
        ValueError: it is not a duration, or it is 0. A number without a unit is ambiguous.
    """
    match = _DURATION.fullmatch(duration)
    hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + rest
    if not total:
        raise ValueError("give hours, minutes or seconds, each with its unit, such as 6h, 90m, 1h30m or 45s")
    return total


def in_words(seconds: float) -> str:
    """A duration for messages, in whole minutes if it has some."""
    minutes = seconds / 60
    return f"{minutes:,.0f} min" if minutes >= 2 else f"{seconds:,.3g} s"
