"""For tests that start processes: waiting for what they do, and ports for them."""

import contextlib
import socket
import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], what: str, within_s: float = 400) -> None:
    deadline = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        if condition():
            return
        assert began < deadline, f"no {what}"
        rest(began)


def rest(began: float) -> None:
    """Sleep before asking again: nine times as long as asking took since `began`, so that who waits leaves the
    core to those waited for. To look through all processes takes some 10 ms."""
    time.sleep(min(1.0, max(0.05, 9 * (time.monotonic() - began))))


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]
