"""The other end of an engine's process: starts it, sends it rows, takes its answers, notices its death."""

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

from routelmt_batch.engines.models import Keyed, Load

if TYPE_CHECKING:
    from routelmt_batch.prompts import Prompter


_LAST_BREATH_S = 5.0  # from the end of its pipe to its own end


class EngineDied(Exception):
    """The engine's process is gone, and with it what was in it."""


class EngineBroken(Exception):
    """The engine does not start, or fails whatever it is sent."""


@dataclass(frozen=True)
class Recipe:
    """What an engine's process loads, and how it is started.

    Args:
        python: its interpreter; None: this one.
        environment: variables beside this process's own.
    """

    load: Load
    prompter: Prompter | None = None
    limit_tokens: int = 0
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class EngineProcess:
    """Raises EngineBroken, with the engine's own words, if it does not start.

    Messages to the process: its Recipe's first three fields, then `(keys, rows)`. Messages from it:
    `("ready", None)`, `("failed", words)`, `("answers", [(key, Answer)])`, `("rows failed", RowsFailed)`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.start()

    def start(self) -> None:
        """Start it, anew if it died, and wait until it takes rows.

        Raises:
            EngineBroken: it failed, and said why.
            EngineDied: it ended without a word.
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
        self._tell((recipe.load, recipe.prompter, recipe.limit_tokens))
        self.receive()
        self.ready_at = time.time()

    def _tell(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it is dead: `receive` finds out
            self._pipe.send(message)

    def send(self, keys: Sequence[int], rows: pa.Table) -> None:
        """Send rows; of a process that is dead `receive` tells."""
        self._tell((keys, rows))

    def receive(self) -> list[Keyed]:
        """Wait for answers.

        Raises:
            EngineDied: its process ended.
            EngineBroken: it told why it cannot go on.
            RowsFailed: it has no answer to some rows together.
        """
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_BREATH_S)
            self.end()
            raise EngineDied(f"its process ended with {self._process.returncode}") from None
        if kind == "failed":
            self.end()
            raise EngineBroken(content)
        if kind == "rows failed":
            raise content
        return content or []

    def end(self) -> None:
        """Kill it, if it lives, and wait until it is gone."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()
