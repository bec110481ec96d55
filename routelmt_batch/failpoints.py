"""Named places where a test can stop the process, as a crash or a full disk would.

`ROUTELMT_FAILPOINT=scores.ledger.before:2` kills the process with SIGKILL the second time it
passes there; `...:1:enospc` raises "no space left on device" instead, and `...:1:stop` stops the process
with SIGSTOP. Unset, `reach` does nothing.
"""

import errno
import os
import signal
from collections import Counter

VARIABLE = "ROUTELMT_FAILPOINT"
_passed: Counter[str] = Counter()


def reach(name: str) -> None:
    armed = os.environ.get(VARIABLE)
    if not armed:
        return
    wanted, _, rest = armed.partition(":")
    count, _, effect = rest.partition(":")
    if name != wanted:
        return
    _passed[name] += 1
    if _passed[name] != int(count or 1):
        return
    if effect == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGSTOP if effect == "stop" else signal.SIGKILL)
