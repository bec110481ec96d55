"""Ends a run: SIGTERM, SIGINT and a time limit become an exception in the main thread; or at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

from routelmt_batch import patience
from routelmt_batch.errors import Interrupted, RoutelmtError, UsageError

TIME_LIMIT_EXIT = 124  # that of timeout(1)


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
    """The seconds of a time limit. Raises UsageError; see patience.seconds."""
    try:
        return patience.seconds(duration)
    except ValueError as error:
        raise UsageError(f"--time-limit {duration}: {error}") from None


def end_now(error: RoutelmtError) -> None:
    """End the process, from any thread, without waiting for anything that may hang."""
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # the job is already stopping
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)  # a second signal ends the job at once; the reaper cleans up
    if number == signal.SIGALRM:
        raise Interrupted("stopped by --time-limit", TIME_LIMIT_EXIT)
    raise Interrupted(f"stopped by {signal.Signals(number).name}", 128 + number)
