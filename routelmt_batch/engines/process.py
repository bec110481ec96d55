"""The parent's side of an engine's process: starts it, sends rows, receives answers, notices its death."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import TYPE_CHECKING

import pyarrow as pa

from routelmt_batch import fetched
from routelmt_batch.engines.models import Keyed, Load
from routelmt_batch.fetched import Copy

if TYPE_CHECKING:
    from routelmt_batch.prompts import Prompter


_EXIT_WAIT_S = 5.0  # how long a process may take to exit after its pipe closed


class EngineDied(Exception):
    """The engine's process ended, and the rows in it have no answer."""


class EngineBroken(Exception):
    """The engine does not start, or fails on every row."""


@dataclass(frozen=True)
class Recipe:
    """What an engine's process loads, and how it is started.

    Args:
        python: its interpreter; None: this one.
        environment: variables that are added to this process's own.
        models: the copies of fetched models that it loads, as the driver has them.
    """

    load: Load
    prompter: Prompter | None = None
    limit_tokens: int = 0
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Copy] = field(default_factory=dict)


class EngineProcess:
    """An engine's process, started. Raises EngineBroken, with the engine's error, if it does not start.

    Messages to the process: its Recipe's first three fields and its models on this node, then `(keys, rows)`.
    Messages from it: `("ready", None)`, `("failed", error)`, `("answers", [(key, Answer)])`,
    `("rows failed", RowsFailed)`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.start()

    def start(self) -> None:
        """Start the process, or replace one that died, and wait until it is ready for rows.

        Raises:
            EngineBroken: it reported an error.
            EngineDied: it ended without reporting one.
        """
        recipe = self._recipe
        self.started_at = time.time()
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
        models = fetched.copies(*recipe.models)
        self._put((recipe.load, recipe.prompter, recipe.limit_tokens, models))
        self.receive()
        self.ready_at = time.time()

    def _put(self, message: object) -> None:
        with contextlib.suppress(OSError):  # the process is dead: `receive` raises EngineDied
            self._pipe.send(message)

    def send(self, keys: Sequence[int], rows: pa.Table) -> None:
        """Send rows. If the process is dead, the next `receive` raises EngineDied."""
        self._put((keys, rows))

    def receive(self) -> list[Keyed]:
        """Wait for answers.

        Raises:
            EngineDied: the process ended.
            EngineBroken: the engine reported that it cannot go on.
            RowsFailed: the engine failed on some rows together.
        """
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_WAIT_S)
            self.end()
            raise EngineDied(f"its process ended with exit status {self._process.returncode}") from None
        if kind == "failed":
            self.end()
            raise EngineBroken(content)
        if kind == "rows failed":
            raise content
        return content or []

    def end(self) -> None:
        """Kill the process if it is alive, and wait until it is gone."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()
