"""Makes processes that do not move say where they are, and ends them. It knows no Ray.

A process is known by its number and its creation time: another one may have its number by now. It is
imported in the quality environment, too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

_SIGNAL = signal.SIGUSR1
_WRITING_S = 1.0


def show_on_signal() -> None:
    """Make this process write the stacks of its threads to standard error on a signal, even while one of them
    holds the interpreter's lock."""
    faulthandler.register(_SIGNAL, file=2)


def began(pid: int | None = None) -> float:
    """When a living process, by default this one, was created."""
    import psutil

    return float(psutil.Process(pid).create_time())


def show(pid: int, created: float) -> bool:
    """Make a process and its descendants write their stacks. Those that do not take the signal are left out:
    it would end them. A stopped process writes nothing. Returns whether the process is alive."""
    family = _family(pid, created)
    for process in family:
        with contextlib.suppress(OSError):
            if _takes_signal(process.pid):
                os.kill(process.pid, _SIGNAL)
    time.sleep(_WRITING_S if family else 0)
    return bool(family)


def end(pid: int, created: float) -> bool:
    """Kill a process and its descendants. Returns whether it was alive."""
    import psutil

    family = _family(pid, created)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return bool(family)


def show_and_end(pid: int, created: float) -> bool:
    """Make a process write its stacks, then kill it; see `show` and `end`."""
    return show(pid, created) and end(pid, created)


def state(pid: int, created: float) -> str:
    """What the system says of a process: `running`, `sleeping`, `stopped`, `gone`, ..."""
    import psutil

    family = _family(pid, created)
    try:
        return str(family[0].status()) if family else "gone"
    except psutil.Error:
        return "gone"


def _family(pid: int, created: float) -> list[Process]:
    """A living process and its descendants, or nothing if it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or created != process.create_time():
            return []
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _takes_signal(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf8").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (_SIGNAL - 1) & 1)
    return False
