"""Watches a pass: reports nodes that are lost or join, ends stuck actors, and the job if nothing moves.

An engine that does not answer is its actor's affair; see EngineProcess.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from routelmt_batch.engines import stacks
from routelmt_batch.engines.lanes import Tell
from routelmt_batch.engines.roll import Place
from routelmt_batch.errors import EngineError
from routelmt_batch.patience import Patience, Silence, in_words

logger = logging.getLogger(__name__)
_POLL_S = 2.0
_REMIND_S = 300.0  # how often resources that are still lacking are reported again
_KILL_S = 30.0  # how long a node may take to kill a process


class Watched(NamedTuple):
    """What a watch asks and tells its pass.

    Args:
        lacks: returns a message for each resource that the pools need and the cluster lacks now.
        give_up: ends the job's process at once, with an error; takes whether Ray answers.
    """

    lacks: Callable[[], Sequence[str]]
    give_up: Callable[[EngineError, bool], None]


class Watch:
    """The watch over one pass. `receipt` must be called for each receipt of the pass.

    Args:
        roll: the pass's Roll, an actor.
        patience: how long nothing may move, and how long the first engine may take to come.
    """

    def __init__(self, watched: Watched, tell: Tell, roll: Any, patience: Patience) -> None:
        self._watched = watched
        self._tell = tell
        self._roll = roll
        self._stall_s, self._start_s = patience
        self._poll_s = min(_POLL_S, self._stall_s / 10)
        self._nodes: dict[str, str] | None = None
        self._receipts = self._polls = self._ended_actors = 0
        self._reminded_s = 0.0
        self._called: dict[str, Any] = {}
        self._actors: defaultdict[str, Silence] = defaultdict(Silence)
        self._pass = Silence()
        self._over = threading.Event()

    def receipt(self) -> None:
        self._receipts += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the body runs. Raises nothing: see Watched.give_up."""
        watch = threading.Thread(target=self._watch, daemon=True, name="watch")
        # Another thread, because each question to Ray may take for ever.
        threads = [watch, threading.Thread(target=self._watch_head, daemon=True, name="watch-head")]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            watch.join(_KILL_S)

    def _watch(self) -> None:
        wait_s = 0.0
        while not self._over.wait(wait_s):
            wait_s = self._poll_s
            try:
                self._look_at_nodes()
                self._look_at_actors()
                self._polls += 1
            except Exception:
                logger.exception("Ray gave no answer about the cluster's nodes and actors")

    def _watch_head(self) -> None:
        head = Silence()
        while not self._over.wait(self._poll_s):
            if head.after(self._poll_s, self._polls) >= self._stall_s:
                self._end_job(
                    f"Ray's head has not answered for {in_words(self._stall_s)} (run.stall_timeout): it "
                    "hangs, or cannot be reached",
                    ray_answers=False,
                )
                return

    def _look_at_nodes(self) -> None:
        now = _alive()
        known = now if self._nodes is None else self._nodes
        for node in known.keys() - now.keys():
            self._tell(
                f"node {known[node]} is lost: other nodes process its unfinished rows again", "warning"
            )
        for node in now.keys() - known.keys():
            self._tell(f"node {now[node]} has joined", "info")
        self._reminded_s += self._poll_s
        if now.keys() != known.keys() or self._reminded_s > _REMIND_S:
            self._reminded_s = 0.0
            for message in self._watched.lacks():
                self._tell(message, "warning")
        self._nodes = now

    def _look_at_actors(self) -> None:
        import ray

        self._called = ray.get(self._roll.called.remote())
        for actor, (place, pulse) in self._called.items():
            if self._actors[actor].after(self._poll_s, (place, pulse.beat)) >= self._stall_s:
                self._end_actor(place)
                del self._actors[actor]
        busy = [pulse.beat for _, pulse in self._called.values() if pulse.busy]
        moved = (self._receipts, self._ended_actors, busy)
        limit_s = self._stall_s if self._called else self._start_s
        if self._pass.after(self._poll_s, moved) < limit_s:
            return
        if self._watched.lacks():  # the job waits for them, and says so
            self._pass = Silence()
            return
        what = (
            f"no row was committed for {in_words(limit_s)} (run.stall_timeout), and none of "
            f"{len(self._called)} engines has rows to work on"
            if self._called
            else f"no engine was started for {in_words(limit_s)} (run.start_timeout)"
        )
        self._end_job(what)

    def _end_actor(self, place: Place) -> None:
        if self._nodes and place.node in self._nodes and _at(place, stacks.show_and_end):
            self._ended_actors += 1
            self._tell(
                f"the actor of an engine (process {place.pid} on {self._nodes[place.node]}) gave no sign of "
                f"life for {in_words(self._stall_s)} and was ended: its rows are processed again",
                "warning",
            )

    def _end_job(self, words: str, ray_answers: bool = True) -> None:
        if self._over.is_set():
            return
        faulthandler.dump_traceback(file=2)  # the driver's log, unless the job is verbose
        for place, _ in self._called.values():
            with contextlib.suppress(Exception):
                _at(place, stacks.show, ray_answers)
        self._watched.give_up(EngineError(words), ray_answers)


def _at(place: Place, act: Callable[[int, float], bool], ray_answers: bool = True) -> bool:
    """Do something to a process where it is. Returns what `act` does; False if the node does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if place.node == ray.get_runtime_context().get_node_id():
        return act(place.pid, place.began)
    if not ray_answers:
        return False
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(act).options(scheduling_strategy=there)
    try:
        return bool(ray.get(task.remote(place.pid, place.began), timeout=_KILL_S))
    except Exception as error:  # the node may be gone
        logger.warning(
            "process %d on node %s was not reached: %s", place.pid, place.node, type(error).__name__
        )
        return False


def _alive() -> dict[str, str]:
    """The addresses of live nodes, by node id."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
