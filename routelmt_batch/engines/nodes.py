"""Finds out what each node of a cluster has: its processors, its Python, its packages."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from routelmt_batch.engines.session import Session
from routelmt_batch.errors import UsageError
from routelmt_batch.spec.dtypes import Processors, here
from routelmt_batch.store.manifest import versions

# Packages that change texts, or that Ray's processes exchange objects of.
_SAME = ("routelmt-batch", "ray", "vllm", "torch", "transformers", "pyarrow")
Software = tuple[str, dict[str, str]]  # a machine, and versions by name
Found = TypeVar("Found")


def processors(address: str | None) -> list[Processors]:
    """The processors of every node that the cluster has now; without an address, of this machine.

    Raises:
        UsageError: no cluster answers at the address.
    """
    if address in (None, "local"):
        return here()
    return [processor for node in _everywhere(str(address), here) for processor in node]


def check_nodes(address: str | None) -> None:
    """Compare the Python and the packages of every node with this process's; see refuse_differences.

    Raises:
        UsageError: a node has others, or no cluster answers at the address.
    """
    if address not in (None, "local"):
        refuse_differences([software("this process"), *_everywhere(str(address), software)])


def software(machine: str) -> Software:
    """Versions of Python and of the packages in _SAME. Builds for CPUs and for GPUs count as the same."""
    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for name, version in versions().items():
        if (name := name.removesuffix("-cpu")) in _SAME:
            found[name] = version.partition("+")[0]
    return machine, found


def refuse_differences(machines: Sequence[Software]) -> None:
    """Raises UsageError if a machine has another Python or other packages than the first one."""
    (first, wanted), *others = machines
    for machine, has in others:
        differences = [
            f"{name} {has.get(name, 'is not installed')} (here {wanted.get(name, 'not installed')})"
            for name in dict.fromkeys([*wanted, *has])
            if has.get(name) != wanted.get(name)
        ]
        if differences:
            raise UsageError(
                f"{machine} has other software than {first}: {', '.join(differences)}. Its rows could get "
                "other texts, or fail: install the same pins on every node (docs/pages/clusters.md)"
            )


def _everywhere(address: str, look: Callable[[str], Found]) -> list[Found]:
    """What `look` returns, given a node's name, on every node that the cluster has now.

    Raises:
        UsageError: no cluster answers at the address.
    """
    with tempfile.TemporaryDirectory() as folder, Session(Path(folder), address) as session:
        session.start()  # before Ray is imported: it sets whether Ray sends a token
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(num_cpus=0, max_retries=0)(look)
        with session.explaining("nodes"):
            found: list[Found] = ray.get(
                [
                    task.options(
                        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    ).remote(f"node {node['NodeManagerAddress']}")
                    for node in ray.nodes()
                    # A head node without CPUs and GPUs runs no engine.
                    if node["Alive"] and any(node["Resources"].get(name) for name in ("CPU", "GPU"))
                ]
            )
    return found
