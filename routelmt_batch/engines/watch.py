"""Reports nodes that are lost or join during a pass: Ray repeats a lost node's rows in silence."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from routelmt_batch.engines.lanes import Tell

logger = logging.getLogger(__name__)
_POLL_S = 2.0
_REMIND_S = 300.0  # how often resources that are still lacking are reported again


@contextlib.contextmanager
def watching(tell: Tell, lacks: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Report nodes that are lost or join, and the resources that the pools then lack.

    Args:
        lacks: returns a message for each resource that the pools need and the cluster lacks now.
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
                tell(f"node {known[node]} is lost: other nodes process its unfinished rows again", "warning")
            for node in now.keys() - known.keys():
                tell(f"node {now[node]} has joined", "info")
            if now.keys() != known.keys() or time.monotonic() > remind_at:
                remind_at = time.monotonic() + _REMIND_S
                for message in lacks():
                    tell(message, "warning")
            before = now
        except Exception:
            logger.exception("could not list the cluster's nodes")  # if Ray itself is gone, the pass fails


def _alive() -> dict[str, str]:
    """The addresses of live nodes, by node id."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
