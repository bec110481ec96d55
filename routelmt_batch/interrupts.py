"""Turns SIGTERM, SIGINT and a time limit into an exception in the main thread."""

from __future__ import annotations

import re
import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

from routelmt_batch.errors import Interrupted, UsageError

TIME_LIMIT_EXIT = 124  # that of timeout(1)
_DURATION = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")


def stop_on_signals() -> None:
    """Make SIGTERM and SIGINT raise Interrupted, so that engines are shut down in order."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


@contextmanager
def time_limit(duration: str | None) -> Iterator[None]:
    """Interrupt the block after a duration; None sets no limit.

    Raises:
        UsageError: see seconds.
        Interrupted: the time limit was reached.
    """
    if duration is None:
        yield
        return
    after = seconds(duration)
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seconds(duration: str) -> int:
    """The seconds of a duration such as `1h30m`, `90m` or `45s`.

    Raises:
        UsageError: it is not a duration, or it is 0. A number without a unit is ambiguous.
    """
    match = _DURATION.fullmatch(duration)
    hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + rest
    if not total:
        raise UsageError(
            f"--time-limit {duration}: give hours, minutes or seconds, each with its unit, such as 6h, 90m, "
            "1h30m or 45s"
        )
    return total


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # the job is already stopping
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)  # a second signal ends the job at once; the reaper cleans up
    if number == signal.SIGALRM:
        raise Interrupted("stopped by --time-limit", TIME_LIMIT_EXIT)
    raise Interrupted(f"stopped by {signal.Signals(number).name}", 128 + number)
