"""Pools of engines as Ray Data actors, one Ray Dataset per pass.

    work units -> reading tasks -> batches of requests -> actors with engines -> receipts of written parts

CPU and GPU go the same way; only resources and a few engine settings differ.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from routelmt_batch import quality
from routelmt_batch.engines.actor import BATCH, RECEIPT, EngineActor, Serving
from routelmt_batch.engines.deaths import RESTARTS, open_deaths
from routelmt_batch.engines.lanes import Lane, Receipt, Tell
from routelmt_batch.engines.models import Generation, Load, Scoring
from routelmt_batch.engines.process import Recipe
from routelmt_batch.engines.session import NO_TELEMETRY, Session
from routelmt_batch.engines.watch import watching
from routelmt_batch.errors import UsageError
from routelmt_batch.spec import Pool, Translator

if TYPE_CHECKING:
    from ray.data import Dataset

_CPU_KV_CACHE_BYTES = 1 << 30
# Rows of one reading task, at most, if its units are small.
_READ_ROWS = 65536
# Batches that one engine holds at most: of small ones the first engine would take those of the others.
_MOST_CALLS = 16
# A task's calls of an actor are tried again whenever the actor is: what bounds them is how often it may die.
_ALWAYS = -1


class Pools:
    """Runs lanes in a Ray session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def gpus(self, pool: Pool) -> int:
        """GPUs of one engine: the spec's, else what its model is split over, where GPUs are."""
        if pool.gpus is not None:
            return pool.gpus
        return pool.gpus_of_model if self.session.resource("GPU") else 0

    def has_room_for(self, pools: Sequence[Pool]) -> bool:
        if self.session.local:
            # Side by side on one machine's cores two engines take as long as one after the other.
            gpus = self.session.resource("GPU")
            return 0 < sum(self.gpus(pool) * pool.replicas.min for pool in pools) <= gpus
        needs = {
            "GPU": sum(self.gpus(pool) * pool.replicas.min for pool in pools),
            "CPU": sum(pool.cpus * pool.replicas.min for pool in pools) + 1,
        }
        return all(self.session.resource(name) >= need for name, need in needs.items())

    def run(self, lanes: Sequence[Lane], tell: Tell = lambda message, level: None) -> Iterator[Receipt]:
        """One Dataset for all lanes. Yields a receipt for each part, as it is written; tells what becomes of
        the nodes.

        Raises:
            RoutelmtError: what a read or a write raised.
            EngineError: an engine did not start, or died more often than it is restarted.
        """
        self.session.start()
        pools = [{lane.label: lane.pool for lane in lanes}]
        for message in self.check_fit(pools):
            tell(message, "warning")
        # A local Ray is one node: Ray's own count of restarts does.
        deaths = None if self.session.local else open_deaths()
        datasets = [self._dataset(lane, deaths) for lane in lanes]
        whole = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
        with (
            self.session.explaining(", ".join(lane.label for lane in lanes)),
            watching(tell, lambda: self.check_fit(pools)),
        ):
            for batch in whole.iter_batches(batch_size=None, batch_format="pyarrow"):
                for receipt in batch.column(RECEIPT).to_pylist():
                    yield pickle.loads(receipt)

    def check_fit(self, together: Sequence[Mapping[str, Pool]]) -> list[str]:
        """See Engine. Ray would wait for resources in silence.

        Raises:
            UsageError: a local Ray lacks GPUs or CPUs for pools that run at once.
        """
        warnings = []
        for pools in together:
            for name in ("GPU", "CPU"):
                needs = {
                    label: pool.replicas.min * (pool.cpus if name == "CPU" else self.gpus(pool))
                    for label, pool in pools.items()
                }
                if name == "CPU" and not self.session.local:
                    needs["reading and writing"] = Session.task_cpus
                has = self.session.resource(name)
                if sum(needs.values()) <= has:
                    continue
                told = ", ".join(f"{label} {need:g}" for label, need in needs.items())
                if self.session.local:
                    raise UsageError(
                        f"{name}s needed: {told}; this machine has {has:g}. Set replicas, gpus or cpus of "
                        "the pools lower, or give a cluster with --address"
                    )
                warnings.append(
                    f"{name}s needed: {told}; the cluster has {has:g} now, and the job waits for more: add a "
                    f"node, or stop it and set replicas, gpus or cpus of the pools lower"
                )
        return warnings

    def _dataset(self, lane: Lane, deaths: Any) -> Dataset:
        import ray.data

        items = [{"units": pickle.dumps(units)} for units in groups(lane.units)]
        ds = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        ds = ds.map_batches(
            _reader(lane.read, lane.part_rows),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=self.session.task_cpus,
        )
        if lane.python and not self.session.local:
            self.check_nodes(lane.python)
        recipe = self.recipe(lane)
        # Batches whose rows are in the engine or wait for it, one that is written and one that is fetched.
        calls = min(_MOST_CALLS, 2 + -(-recipe.load.room // lane.part_rows))
        with warnings.catch_warnings():
            # Ray 2.60 deprecates the only way there is to say how often an actor is restarted.
            warnings.filterwarnings("ignore", message=".*ray_remote_args.* is deprecated")
            return ds.map_batches(
                EngineActor,
                fn_constructor_args=(Serving(lane.label, recipe, lane.write, lane.retries), deaths),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=lane.pool.replicas.min,
                    max_size=lane.pool.replicas.max,
                    max_concurrent_calls_per_actor=calls,
                    max_tasks_in_flight_per_actor=calls + 1,
                    enable_true_multi_threading=True,
                ),
                num_cpus=lane.pool.cpus,
                num_gpus=self.gpus(lane.pool) or None,
                max_restarts=RESTARTS if deaths is None else _ALWAYS,
                max_task_retries=_ALWAYS,
            )

    def check_nodes(self, python: str) -> None:
        """Try the quality environment on every node: engines' processes are started in it there.

        Raises:
            UsageError: see quality.check_at.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        check = ray.remote(num_cpus=0, max_retries=0)(lambda: quality.check_at(Path(python)))
        with self.session.explaining("quality environment"):
            ray.get(
                [
                    check.options(
                        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    ).remote()
                    for node in ray.nodes()
                    if node["Alive"]
                ]
            )

    def recipe(self, lane: Lane) -> Recipe:
        """What the processes of a lane's engines load."""
        load: Load
        if lane.scorer:
            load = Scoring(lane.scorer, lane.cuts)
        else:
            assert isinstance(lane.pool, Translator)
            load = Generation(
                self.engine_arguments(lane.pool),
                lane.max_output_tokens,
                lane.end_tokens,
                lane.pool.max_num_seqs,
            )
        return Recipe(load, lane.prompter, lane.limit_tokens, lane.python, self.environment(lane.pool))

    def engine_arguments(self, pool: Translator) -> dict[str, Any]:
        """vLLM's EngineArgs of a pool; its free settings come last."""
        arguments: dict[str, Any] = {
            "model": pool.source,
            "dtype": pool.dtype,
            "max_model_len": pool.max_model_len_tokens,
            "max_num_batched_tokens": max(pool.max_num_batched_tokens, pool.max_model_len_tokens),
            "max_num_seqs": pool.max_num_seqs,
            "tensor_parallel_size": pool.tensor_parallel_size,
            "trust_remote_code": pool.trust_remote_code,
            "disable_log_stats": True,
        }
        if not self.gpus(pool):
            arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES}
        return arguments | pool.engine

    def environment(self, pool: Pool) -> dict[str, str]:
        """Variables of an engine's process."""
        environment = dict(NO_TELEMETRY)
        if self.gpus(pool):
            # The engine's core gets a process of its own: it steps on while this one takes rows and texts.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        else:
            environment |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "OMP_NUM_THREADS": str(pool.threads or self.session.cores),
                # How long a thread spins for the next step before it sleeps. To wake it takes longer than
                # most waits do, on a virtual machine above all.
                "GOMP_SPINCOUNT": "200000",
            }
        return environment | pool.env


def groups(units: Sequence[Any]) -> Iterator[list[Any]]:
    """Work units in order, small ones together: each group is a reading task."""
    group: list[Any] = []
    rows = 0
    for unit in units:
        size = unit.unit.rows
        if group and rows + size > _READ_ROWS:
            yield group
            group, rows = [], 0
        group.append(unit)
        rows += size
    if group:
        yield group


def _reader(
    read: Callable[[Any], Iterator[pa.Table]], part_rows: int
) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """Reads units into batches of `part_rows` requests across their borders; each is a row of a block, so
    that Ray Data neither splits nor merges them."""

    def tables(block: pa.Table) -> Iterator[pa.Table]:
        for units in block["units"].to_pylist():
            for unit in pickle.loads(units):
                yield from read(unit)

    def batches(block: pa.Table) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        rows = 0
        for table in tables(block):
            waiting.append(table)
            rows += table.num_rows
            while rows >= part_rows:
                whole = pa.concat_tables(waiting)
                yield _packed(whole.slice(0, part_rows))
                rows -= part_rows
                waiting = [whole.slice(part_rows)] if rows else []
        if rows:
            yield _packed(pa.concat_tables(waiting))

    return batches


def _packed(requests: pa.Table) -> pa.Table:
    # Combined: a slice would take the whole of its buffers along.
    requests = requests.take(pa.array(range(requests.num_rows)))
    return pa.table({BATCH: pa.array([pickle.dumps(requests, protocol=5)], pa.binary())})
