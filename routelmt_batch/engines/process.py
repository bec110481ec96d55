"""The parent's side of an engine's process: starts it, sends rows, receives answers, notices its death.

A process that does not answer is killed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import TYPE_CHECKING

import pyarrow as pa

from routelmt_batch import fetched
from routelmt_batch.engines import stacks
from routelmt_batch.engines.models import Keyed, Load, RowsFailed
from routelmt_batch.fetched import Copy
from routelmt_batch.patience import PATIENCE, Patience, Silence, in_words

if TYPE_CHECKING:
    from routelmt_batch.prompts import Prompter

logger = logging.getLogger(__name__)
_EXIT_WAIT_S = 5.0  # how long a process may take to exit after its pipe closed
_MOST_TICK_S = 1.0


class EngineDied(Exception):
    """The engine's process ended, or did not answer and was ended; the rows in it have no answer."""


class EngineBroken(Exception):
    """The engine does not start, or fails on every row."""


@dataclass(frozen=True)
class Recipe:
    """What an engine's process loads, and how it is started.

    Args:
        python: its interpreter; None: this one.
        environment: variables that are added to this process's own.
        models: the copies of fetched models that it loads, as the driver has them.
        patience: how long it may take to start, and to answer any of its rows.
    """

    load: Load
    prompter: Prompter | None = None
    limit_tokens: int = 0
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Copy] = field(default_factory=dict)
    patience: Patience = PATIENCE


class EngineProcess:
    """An engine's process, started. Raises EngineBroken, with the engine's error, if it does not start.

    Messages to the process: its Recipe's first three fields and its models on this node, then `(keys, rows)`.
    Messages from it: `("ready", None)`, `("failed", error)`, `("answers", [(key, Answer)])`,
    `("rows failed", RowsFailed)`.

    A thread watches the process: if it sends nothing for as long as the recipe allows, it is killed.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._sending = threading.Lock()  # held while the pipe is written to, so that it is not closed then
        self.start()

    @property
    def busy(self) -> bool:
        """Whether it starts or has rows to answer, and so has a deadline."""
        return self._limit_s is not None

    @property
    def _limit_s(self) -> float | None:
        """How long it may send nothing now."""
        if self._starting:
            return self._recipe.patience.start_s
        return self._recipe.patience.stall_s if self._sent > self._answered else None

    def start(self) -> None:
        """Start the process, or replace one that died, and wait until it is ready for rows.

        Raises:
            EngineBroken: it reported an error.
            EngineDied: it ended without reporting one, or was not ready in time.
        """
        recipe = self._recipe
        self.started_at, self._starting = time.time(), True
        self._sent = self._answered = self._messages = 0
        self._silent_for = ""
        self._ended = threading.Event()
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [
                    recipe.python or sys.executable,
                    "-P",
                    "-m",
                    "routelmt_batch.engines.child",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **recipe.environment},
            )
        self._created = stacks.began(self._process.pid)  # it has not been waited for: its number is its own
        watched = self._process, self._created, self._ended
        threading.Thread(target=self._watch, args=watched, daemon=True).start()
        models = fetched.copies(*recipe.models)
        self._put((recipe.load, recipe.prompter, recipe.limit_tokens, models))
        self.receive()
        self.ready_at, self._starting = time.time(), False

    def _put(self, message: object) -> None:
        # If the process is dead, `receive` raises EngineDied.
        with contextlib.suppress(OSError), self._sending:
            self._pipe.send(message)

    def send(self, keys: Sequence[int], rows: pa.Table) -> None:
        """Send rows. If the process is dead, the next `receive` raises EngineDied."""
        self._sent += len(keys)
        self._put((keys, rows))

    def receive(self) -> list[Keyed]:
        """Wait for answers.

        Raises:
            EngineDied: the process ended, or did not answer in time and was ended.
            EngineBroken: the engine reported that it cannot go on.
            RowsFailed: the engine failed on some rows together.
        """
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_WAIT_S)
            self.end()
            how = self._silent_for or f"ended with exit status {self._process.returncode}"
            raise EngineDied(f"its process {how}") from None
        self._messages += 1
        if kind == "failed":
            self.end()
            raise EngineBroken(content)
        if isinstance(content, RowsFailed):
            self._answered += len(content.keys)
            raise content
        self._answered += len(content or ())
        return content or []

    def _watch(self, process: subprocess.Popen[bytes], created: float, ended: threading.Event) -> None:
        silence = Silence()
        tick_s = min(_MOST_TICK_S, min(self._recipe.patience) / 10)
        while not ended.wait(tick_s):
            before = self._messages, self._limit_s
            if silence.after(tick_s, before) < (limit_s := self._limit_s or math.inf):
                continue
            stacks.show(process.pid, created)
            if before != (self._messages, self._limit_s) or ended.is_set():
                continue
            did = "was not ready after" if self._starting else "answered none of its rows for"
            self._silent_for = (
                f"{did} {in_words(limit_s)} ({stacks.state(process.pid, created)}) and was killed"
            )
            logger.warning("the engine's process %d %s", process.pid, self._silent_for)
            stacks.end(process.pid, created)
            return

    def end(self) -> None:
        """Kill the process and its descendants if it is alive, and wait until it is gone."""
        self._ended.set()
        stacks.end(self._process.pid, self._created)
        self._process.wait()
        with self._sending:
            self._pipe.close()
