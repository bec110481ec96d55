"""What ends a job before its time, as an exception in the main thread: SIGTERM, SIGINT, a time limit."""

from __future__ import annotations

import re
import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

from routelmt_batch.errors import Interrupted, UsageError

TIME_LIMIT_EXIT = 124  # as of timeout(1)
_DURATION = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")


def stop_on_signals() -> None:
    """SIGTERM and SIGINT end the job as an exception, so that engines are shut down in order."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


@contextmanager
def time_limit(duration: str | None) -> Iterator[None]:
    """What runs inside is stopped after a duration as by a signal; without one, never.

    Raises:
        UsageError: see seconds.
        Interrupted: the time is over.
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
    """`1h30m`, `90m`, `45s` in seconds.

    Raises:
        UsageError: it is not a duration, or 0. A number alone could mean hours, minutes or seconds.
    """
    match = _DURATION.fullmatch(duration)
    hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    found = 3600 * hours + 60 * minutes + rest
    if not found:
        raise UsageError(
            f"--time-limit {duration}: give hours, minutes or seconds, each with its unit, such as 6h, 90m, "
            "1h30m or 45s"
        )
    return found


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # one end is enough
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)  # a second one ends it at once; the reaper tidies up
    if number == signal.SIGALRM:
        raise Interrupted("stopped by --time-limit", TIME_LIMIT_EXIT)
    raise Interrupted(f"stopped by {signal.Signals(number).name}", 128 + number)
