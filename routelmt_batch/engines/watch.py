"""Tells what becomes of a cluster's nodes during a pass: Ray redoes a lost one's rows, in silence."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from routelmt_batch.engines.lanes import Tell

logger = logging.getLogger(__name__)
_POLL_S = 2.0
_REMIND_S = 300.0  # of what is lacking, while it is


@contextlib.contextmanager
def watching(tell: Tell, lacks: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Tell of nodes that are lost or join, and of what the pools then lack.

    Args:
        lacks: resources that the pools want and the cluster does not have now, in words.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended, tell, lacks), daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(ended: threading.Event, tell: Tell, lacks: Callable[[], Sequence[str]]) -> None:
    before: dict[str, str] | None = None
    remind_at = time.monotonic() + _REMIND_S
    while not ended.wait(_POLL_S if before is not None else 0):
        try:
            now = _alive()
            known = now if before is None else before
            for node in known.keys() - now.keys():
                tell(f"node {known[node]} is lost: the rows that it had are done again elsewhere", "warning")
            for node in now.keys() - known.keys():
                tell(f"node {now[node]} has joined", "info")
            if now.keys() != known.keys() or time.monotonic() > remind_at:
                remind_at = time.monotonic() + _REMIND_S
                for message in lacks():
                    tell(message, "warning")
            before = now
        except Exception:
            logger.exception("the nodes could not be asked for")  # Ray itself may be gone: the pass says so


def _alive() -> dict[str, str]:
    """Addresses by node."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
