"""Streams whose death ends nothing: a closed pipe or a full disk loses lines, but no job."""

from __future__ import annotations

import contextlib
import io
import os
import sys


class Sink(io.TextIOWrapper):
    """A text stream to a file descriptor. What cannot be written is dropped.

    Args:
        owned: whether the descriptor is closed with the stream.
    """

    def __init__(self, descriptor: int, owned: bool = False) -> None:
        file = open(descriptor, "wb", closefd=owned)  # noqa: SIM115
        super().__init__(file, encoding="utf8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def open_standard() -> None:
    """Open standard streams that are closed: files that are opened later would get their numbers, and what
    libraries print. Standard error becomes a Sink; its loss is no error in any command."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    if sys.stderr is sys.__stderr__:  # else somebody listens
        sys.stderr = Sink(2)
    sys.stdout = sys.stdout or Sink(1)


def spare_standard_output() -> None:
    """Make standard output a Sink, in commands whose result is in files: its loss does not fail a job."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = Sink(1)
