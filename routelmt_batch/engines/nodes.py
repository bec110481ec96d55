"""Finds out which processors each node of a cluster has."""

from __future__ import annotations

import tempfile
from pathlib import Path

from routelmt_batch.engines.session import Session
from routelmt_batch.spec.dtypes import Processors, here


def processors(address: str | None) -> list[Processors]:
    """The processors of every node that the cluster has now; without an address, of this machine.

    Raises:
        UsageError: no cluster answers at the address.
    """
    if address in (None, "local"):
        return here()
    with tempfile.TemporaryDirectory() as folder, Session(Path(folder), address) as session:
        session.start()  # before Ray is imported: it sets whether Ray sends a token
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(num_cpus=0, max_retries=0)(here)
        with session.explaining("nodes"):
            nodes = ray.get(
                [
                    look.options(
                        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    ).remote(f"node {node['NodeManagerAddress']}")
                    for node in ray.nodes()
                    # A head node without CPUs and GPUs runs no engine.
                    if node["Alive"] and any(node["Resources"].get(name) for name in ("CPU", "GPU"))
                ]
            )
    return [processor for node in nodes for processor in node]
