"""Makes processes that do not move say where they are, and ends them. It knows no Ray.

It is imported in the quality environment, too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

logger = logging.getLogger(__name__)
_SIGNAL = signal.SIGUSR1
_WRITING_S = 1.0


def show_on_signal() -> None:
    """Make this process write the stacks of its threads to standard error on a signal, even while one of them
    holds the interpreter's lock."""
    faulthandler.register(_SIGNAL, file=2)


def show(pid: int) -> None:
    """Make a process and its descendants write their stacks. Those that do not take the signal are left out:
    it would end them. A stopped process writes nothing."""
    for process in _family(pid):
        with contextlib.suppress(OSError):
            if _takes_signal(process.pid):
                os.kill(process.pid, _SIGNAL)
    time.sleep(_WRITING_S)


def end(pid: int, began: float | None = None) -> bool:
    """Kill a process and its descendants. Returns whether it was alive.

    Args:
        began: when the process was created; another one may have its number by now.
    """
    import psutil

    family = _family(pid, began)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return bool(family)


def show_and_end(pid: int, began: float | None = None) -> bool:
    """Make a process write its stacks, then kill it; see `show` and `end`."""
    if not _family(pid, began):
        return False
    show(pid)
    return end(pid, began)


def state(pid: int) -> str:
    """What the system says of a process: `running`, `sleeping`, `stopped`, `gone`, ..."""
    family = _family(pid)
    return str(family[0].status()) if family else "gone"


def _family(pid: int, began: float | None = None) -> list[Process]:
    """A living process and its descendants, or nothing if it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or began not in (None, process.create_time()):
            return []
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _takes_signal(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf8").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (_SIGNAL - 1) & 1)
    return False
