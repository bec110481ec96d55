"""Counts how often a job's actors died. The loss of a node does not count: spot nodes come and go.

Ray restarts a dead actor wherever there is room. Its own limit (`max_restarts`) counts lost nodes, too, so
it is not used on a cluster.
"""

from __future__ import annotations

from typing import Any

from routelmt_batch.engines.process import EngineBroken

# How often an actor or an engine's process is restarted before the job fails.
RESTARTS = 2


class Deaths:
    """A Ray actor to which each engine's actor reports its starts."""

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}
        self._deaths: dict[str, int] = {}

    def started(self, actor: str, node: str) -> int:
        """Record an actor's start. Returns how often it has died on nodes that were still alive."""
        import ray

        before = self._nodes.get(actor)
        if before and any(known["NodeID"] == before and known["Alive"] for known in ray.nodes()):
            self._deaths[actor] = self._deaths.get(actor, 0) + 1
        self._nodes[actor] = node
        return self._deaths.get(actor, 0)


def beside_driver(kind: type) -> Any:
    """Start an actor on the driver's node, so that it is lost only with the job."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(kind).options(scheduling_strategy=here).remote()


def refuse_too_many(deaths: Any) -> None:
    """Check, in an actor that starts, how often it has died.

    Raises:
        EngineBroken: it died more often than it is restarted.
    """
    import ray

    context = ray.get_runtime_context()
    died = ray.get(deaths.started.remote(context.get_actor_id(), context.get_node_id()))
    if died > RESTARTS:
        raise EngineBroken(
            f"its process died {died} times, and is restarted {RESTARTS} times at most: it may lack memory"
        )
