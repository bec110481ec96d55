"""A vLLM plugin: a process of vLLM ends when the process that started it is gone.

On a GPU, vLLM runs its core in a child of the engine's process (child.py). If that process is killed with
SIGKILL, the child would go on and hold its memory. vLLM loads `vllm.general_plugins` in each of its
processes; this plugin watches the parent there, and makes the process show its stacks on a signal. It does
nothing in processes that a job did not start.
"""

import os
import threading
import time

from routelmt_batch.engines import stacks

VARIABLE = "ROUTELMT_LIFELINE"  # the process id of the engine's process
_POLL_S = 0.5


def hold() -> None:
    owner = os.environ.get(VARIABLE)
    if owner is None or int(owner) == os.getpid():
        return
    stacks.show_on_signal()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="lifeline").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)
