"""Asks each node of a cluster what it computes with."""

from __future__ import annotations

import tempfile
from pathlib import Path

from routelmt_batch.engines.session import Session
from routelmt_batch.spec.dtypes import Processors, here


def processors(address: str | None) -> list[Processors]:
    """Of every node of a cluster that is there now; of this machine without an address.

    Raises:
        UsageError: no cluster answers at the address.
    """
    if address in (None, "local"):
        return here()
    with tempfile.TemporaryDirectory() as folder, Session(Path(folder), address) as session:
        session.start()  # before Ray is imported: it says whether a token is sent
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(num_cpus=0, max_retries=0)(here)
        with session.explaining("nodes"):
            found = ray.get(
                [
                    look.options(
                        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    ).remote(f"node {node['NodeManagerAddress']}")
                    for node in ray.nodes()
                    # A head that takes no work computes nothing.
                    if node["Alive"] and any(node["Resources"].get(name) for name in ("CPU", "GPU"))
                ]
            )
    return [one for node in found for one in node]
