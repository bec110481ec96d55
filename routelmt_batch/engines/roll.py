"""The roll of a pass's engine actors: how often each has died, and their signs of life.

Ray restarts a dead actor wherever there is room. Its own limit (`max_restarts`) counts lost nodes, too, so
it is not used: spot nodes come and go.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from routelmt_batch.engines import stacks
from routelmt_batch.engines.process import EngineBroken

# How often an actor or an engine's process is restarted before the job fails.
RESTARTS = 2
_BEAT_S = 2.0


class Pulse(NamedTuple):
    """An actor's sign of life: a number that changes while the actor gets on, and whether its engine starts
    or works on rows. Meanwhile the engine has a deadline of its own; see EngineProcess."""

    beat: int = 0
    busy: bool = True


class Place(NamedTuple):
    """Where an actor's process is: its node, its number there, and when it was created."""

    node: str
    pid: int = 0
    began: float = 0.0


class Roll:
    """A Ray actor to which each engine's actor reports its starts and its pulse."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._pulses: dict[str, Pulse] = {}
        self._deaths: dict[str, int] = {}

    def started(self, actor: str, place: Place) -> int:
        """Record an actor's start. Returns how often it has died on nodes that were still alive."""
        import ray

        before = self._places.get(actor)
        if before and any(known["NodeID"] == before.node and known["Alive"] for known in ray.nodes()):
            self._deaths[actor] = self._deaths.get(actor, 0) + 1
        self._places[actor], self._pulses[actor] = place, Pulse()
        return self._deaths.get(actor, 0)

    def take(self, actor: str, pulse: Pulse) -> None:
        self._pulses[actor] = pulse

    def called(self) -> dict[str, tuple[Place, Pulse]]:
        """Every actor that has started: its place and its last pulse."""
        return {actor: (place, self._pulses[actor]) for actor, place in self._places.items()}


def beside_driver(kind: type) -> Any:
    """Start an actor on the driver's node, so that it is lost only with the job."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(kind).options(scheduling_strategy=here).remote()


def enter(roll: Any, pulse: Callable[[], Pulse]) -> None:
    """Report this actor, which starts, to the roll, and from now on its pulse every few seconds.

    Raises:
        EngineBroken: it died more often than it is restarted.
    """
    import ray

    context = ray.get_runtime_context()
    actor = context.get_actor_id()
    place = Place(context.get_node_id(), os.getpid(), stacks.began())
    died = ray.get(roll.started.remote(actor, place))
    if died > RESTARTS:
        raise EngineBroken(
            f"its process died {died} times, and is restarted {RESTARTS} times at most: it may lack memory"
        )

    def report() -> None:
        while True:
            time.sleep(_BEAT_S)
            roll.take.remote(actor, pulse())

    threading.Thread(target=report, daemon=True, name="pulse").start()
