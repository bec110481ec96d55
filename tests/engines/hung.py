"""For tests: a model without vLLM, in a real engine's process. Some texts make it hang, each in another way."""

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from routelmt_batch.engines.lanes import Answer
from routelmt_batch.engines.models import Keyed
from tests.conftest import REPOSITORY

_LONG_S = 600


def _hold_the_lock() -> None:
    mutex = ctypes.create_string_buffer(64)
    library = ctypes.PyDLL(None)  # keeps the interpreter's lock during a call
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # waits for itself; unlike a sleep, no signal wakes it


HANGS = {
    "sleep": lambda: time.sleep(_LONG_S),
    "lock": _hold_the_lock,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}  # the process imports this module


@dataclass
class Shouting:
    """Answers each row with its text in capitals. A text of HANGS hangs it, and so does loading, if so named."""

    loading: str = ""
    room: int = 8
    rows: list[tuple[int, str]] = field(default_factory=list)

    def __call__(self) -> "Shouting":
        HANGS.get(self.loading, lambda: None)()
        return self

    @property
    def busy(self) -> bool:
        return bool(self.rows)

    def add(self, keys: Sequence[int], rows: pa.Table) -> None:
        self.rows += zip(keys, rows["source"].to_pylist(), strict=True)

    def step(self) -> list[Keyed]:
        for _, text in self.rows:
            HANGS.get(text, lambda: None)()
        done, self.rows = self.rows, []
        return [(key, Answer(text=text.upper())) for key, text in done]
