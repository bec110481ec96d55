"""For tests that start processes: waiting for what they do, and ports for them."""

import contextlib
import socket
import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], what: str, within_s: float = 400) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]
