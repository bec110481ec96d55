"""A layer under the store, in the driver: it counts what the driver does to the output's disk, and lets a fault
happen at one of these steps.

It knows no job. A step is a file that is written, made durable, named, replaced or removed.
"""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.files.power import Disk

ERRORS = {"full": errno.ENOSPC, "io": errno.EIO}


class Layer:
    """The steps below `root`, counted from 1. At step `at` the fault `kind` happens: see `chaos.faults`.

    A full disk stays full for `lasts` steps, and an I/O error happens that often. `change` is called at the
    step of the kind `input`. A power cut leaves in `left` what was durable.
    """

    def __init__(
        self, root: Path, kind: str, at: int, lasts: int, left: Path, change: Callable[[], None]
    ) -> None:
        self.root, self.kind, self.at, self.lasts = root, kind, at, lasts
        self.left, self.change = left, change
        self._steps = 0
        self._lock = threading.RLock()
        self._disk = Disk(root)
        if kind == "cut":  # no other run is at work then
            self._disk.holds_all()

    def install(self) -> None:
        """Put it under this process, for the rest of its life."""
        fsync = os.fsync
        for name in ("link", "unlink"):
            setattr(os, name, self._counted(getattr(os, name)))
        # pathlib of Python 3.11 calls os.replace by the module's name, and os.unlink likewise.
        os.replace = self._counted(os.replace)

        def synced(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            with self._lock:
                self._step(path)
                fsync(descriptor)
                if self.kind == "cut":
                    self._disk.fsync(descriptor)

        os.fsync = synced
        writers = (
            (pathlib.Path, "write_bytes"),
            (pathlib.Path, "write_text"),
            (pq, "write_table"),
            (pq.ParquetWriter, "__init__"),
        )
        for holder, name in writers:
            setattr(holder, name, self._written(getattr(holder, name)))

    def _counted(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *others: Any, **options: Any) -> Any:
            self._step(Path(path))
            return usual(path, *others, **options)

        return call

    def _written(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        """A write may fail half-way: then a piece of the file is there."""

        def call(*arguments: Any, **options: Any) -> Any:
            path = next(Path(it) for it in arguments if isinstance(it, str | os.PathLike))
            try:
                self._step(path)
            except OSError:
                with open(path, "wb") as file:
                    file.write(b"PAR1")
                raise
            return usual(*arguments, **options)

        return call

    def _step(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return
        with self._lock:
            self._steps += 1
            if self.kind in ERRORS and self.at <= self._steps < self.at + self.lasts:
                raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]), str(path))
            if self.kind == "input" and self._steps >= self.at:
                self._change_input()
            elif self._steps == self.at:
                self._happen()

    def _change_input(self) -> None:
        """Once, and not before the job has begun: a run that reads another shard first is another job."""
        if next(self.root.glob("*/_job/scores"), None):
            self.at = sys.maxsize
            self.change()

    def _happen(self) -> None:
        if self.kind == "cut":
            self._disk.after_a_cut(self.left)
        if self.kind in ("kill", "cut"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
