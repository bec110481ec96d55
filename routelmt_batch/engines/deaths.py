"""Counts the deaths of a job's actors. One whose node is lost did not die: spot nodes go all night long.

Ray restarts a dead actor wherever there is room. Its own limit (`max_restarts`) counts lost nodes, too, and
so is not used on a cluster.
"""

from __future__ import annotations

from typing import Any

from routelmt_batch.engines.process import EngineBroken

# How often an actor or an engine's process is started again before its job ends.
RESTARTS = 2


class Deaths:
    """An actor of the job. Each engine's actor tells it of every start."""

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}
        self._deaths: dict[str, int] = {}

    def started(self, actor: str, node: str) -> int:
        """Note an actor's start. Returns how often it died before, on nodes that are still there."""
        import ray

        before = self._nodes.get(actor)
        if before and any(one["NodeID"] == before and one["Alive"] for one in ray.nodes()):
            self._deaths[actor] = self._deaths.get(actor, 0) + 1
        self._nodes[actor] = node
        return self._deaths.get(actor, 0)


def beside_driver(kind: type) -> Any:
    """An actor on the driver's node: it is lost with the job alone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(kind).options(scheduling_strategy=here).remote()


def refuse_too_many(deaths: Any) -> None:
    """In an actor that starts.

    Raises:
        EngineBroken: it died more often than it may.
    """
    import ray

    context = ray.get_runtime_context()
    died = ray.get(deaths.started.remote(context.get_actor_id(), context.get_node_id()))
    if died > RESTARTS:
        raise EngineBroken(
            f"its process died {died} times and is restarted {RESTARTS} times: out of memory, perhaps"
        )
