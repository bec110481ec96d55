"""Pools of engines as Ray Data actors, one Ray Dataset per pass.

    work units -> reading tasks -> batches of requests -> actors with engines -> receipts of written parts

CPUs and GPUs are used in the same way; only resources and a few engine settings differ.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from routelmt_batch import fetched
from routelmt_batch.corpus.units import groups
from routelmt_batch.engines import quality
from routelmt_batch.engines.actor import BATCH, RECEIPT, EngineActor, Serving
from routelmt_batch.engines.ahead import Ahead, Inbox, Waiting, receipts
from routelmt_batch.engines.gathering import PartLimits
from routelmt_batch.engines.lanes import Each, Lane, Receipt, Tell
from routelmt_batch.engines.models import Generation, Load, Scoring
from routelmt_batch.engines.process import Recipe
from routelmt_batch.engines.roll import Roll, beside_driver
from routelmt_batch.engines.session import NO_TELEMETRY, Session
from routelmt_batch.engines.watch import Watch, Watched
from routelmt_batch.errors import UsageError
from routelmt_batch.spec import COMET, Pool, Translator
from routelmt_batch.threads import Stop, each

if TYPE_CHECKING:
    from ray.data import Dataset

_CPU_KV_CACHE_BYTES = 1 << 30
# The rows of a batch of requests are a share of an engine's: a sixteenth, so that the first engine does not
# take all of them. Of many rows it is a smaller share, so that no engine ends a pass long after the others.
# Batches are as large as a part may wait for: Ray Data keeps some kilobytes of statistics about each.
_FEWEST_BATCH_ROWS, _SOME_BATCH_ROWS, _MOST_BATCH_ROWS = 64, 1024, 8192
_FEW_BATCHES, _MANY_BATCHES = 16, 64
_BATCH_BYTES = 1 << 20
# Calls that fill an engine, and those that wait for the same part.
_MOST_CALLS, _MOST_WAITING = 16, 32
# A call is retried whenever its actor is restarted: the actor refuses to start too often; see roll.enter.
_ALWAYS = -1


class Pools:
    """Runs lanes in a Ray session."""

    actor: ClassVar[type[EngineActor]] = EngineActor

    def __init__(self, session: Session) -> None:
        self.session = session
        self._ahead: Ahead | None = None

    def gpus(self, pool: Pool) -> int:
        """GPUs of one engine: those of the spec, or if there are GPUs, as many as its model is split over."""
        if pool.gpus is not None:
            return pool.gpus
        return pool.gpus_of_model if self.session.resource("GPU") else 0

    def has_room_for(self, pools: Sequence[Pool], beside: Sequence[Pool] = ()) -> bool:
        """See lanes.Engine."""
        engines = [(pool, pool.replicas.min) for pool in pools] + [
            (pool, pool.replicas.max) for pool in beside
        ]
        gpus = sum(self.gpus(pool) * count for pool, count in engines)
        if self.session.local:
            # On the cores of one machine, two engines at once take as long as one after the other.
            return 0 < gpus <= self.session.resource("GPU")
        cpus = sum(pool.cpus * count for pool, count in engines) + 1
        return gpus <= self.session.resource("GPU") and cpus <= self.session.resource("CPU")

    def start_ahead(self, lanes: Sequence[Lane], beside: Sequence[Lane]) -> bool:
        """See lanes.Engine."""
        running = [lane.pool for lane in beside]
        if self._ahead or not lanes or not self.has_room_for([lane.pool for lane in lanes], running):
            return False
        inbox, roll = beside_driver(Inbox), beside_driver(Roll)
        self._ahead = Ahead(lanes, inbox, roll, self._dataset(lanes, roll, inbox), RECEIPT)
        return True

    def dismiss(self) -> None:
        """Stop engines that were started ahead and that no pass used."""
        if self._ahead:
            self._ahead.dismiss()
            self._ahead = None

    def run(self, lanes: Sequence[Lane], tell: Tell = lambda message, level: None) -> Iterator[Receipt]:
        """Run all lanes as one Dataset. Yields a receipt for each part as it is written, and reports lost and
        new nodes and stuck actors to `tell`. If nothing moves any more, the process ends; see watch.Watch.

        Raises:
            RoutelmtError: what a read or a write raised.
            EngineError: an engine did not start, or died more often than it is restarted.
        """
        self.session.start()
        pools = [{lane.label: lane.pool for lane in lanes}]
        for message in self.check_fit(pools):
            tell(message, "warning")
        with self.session.explaining(", ".join(lane.label for lane in lanes)):
            if self._ahead and self._ahead.serves(lanes):
                ahead, self._ahead = self._ahead, None
                roll, pickled = ahead.roll, ahead.run({lane.label: _packed_groups(lane) for lane in lanes})
            else:
                self.dismiss()
                roll = beside_driver(Roll)
                pickled = receipts(self._dataset(lanes, roll), RECEIPT)
            watched = Watched(lambda: self.check_fit(pools), self.session.give_up)
            watch = Watch(watched, tell, roll, max(lane.patience for lane in lanes))
            with watch.watching():
                for receipt in pickled:
                    watch.receipt()
                    yield pickle.loads(receipt)

    def each(self, work: Callable[[Any, Stop], Any], items: Iterable[Any]) -> Each:
        """See lanes.Engine."""
        if self.session.local:
            return each(work, items)
        self.session.start()
        return self.session.spread(work, items)

    def check_fit(self, together: Sequence[Mapping[str, Pool]]) -> list[str]:
        """See lanes.Engine. Ray itself would wait for resources in silence.

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
                listed = ", ".join(f"{label} {need:g}" for label, need in needs.items())
                if self.session.local:
                    raise UsageError(
                        f"{name}s needed: {listed}; this machine has {has:g}. Set replicas, gpus or cpus of "
                        "the pools lower, or name a cluster with --address"
                    )
                warnings.append(
                    f"{name}s needed: {listed}; the cluster has {has:g} now, and the job waits for more. Add "
                    "a node, or stop the job and set replicas, gpus or cpus of the pools lower"
                )
        return warnings

    def _dataset(self, lanes: Sequence[Lane], roll: Any, inbox: Any | None = None) -> Dataset:
        """One Dataset for all lanes; with an inbox, they wait there for their work units."""
        first, *others = (self._lane(lane, roll, inbox) for lane in lanes)
        return first.union(*others) if others else first

    def _lane(self, lane: Lane, roll: Any, inbox: Any | None) -> Dataset:
        import ray.data

        rows = _batch_rows(lane)
        if inbox is None:
            items = [{"group": group} for group in _packed_groups(lane)]
            ds = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        else:
            ds = ray.data.from_items([{"label": lane.label}]).map_batches(
                Waiting(inbox), batch_size=1, batch_format="pyarrow", num_cpus=0
            )
        ds = ds.map_batches(
            _reader(rows), batch_size=1, batch_format="pyarrow", num_cpus=self.session.task_cpus
        )
        if lane.python and not self.session.local:
            self.check_nodes(lane.python)
        recipe = self.recipe(lane)
        # Enough calls to fill the engine, and one that is being fetched, beside those that wait for a part.
        waiting = min(_MOST_WAITING, -(-lane.part_rows // rows))
        calls = min(_MOST_CALLS, 2 + -(-recipe.load.room // rows)) + waiting
        limits = PartLimits(lane.part_rows, waiting)
        with warnings.catch_warnings():
            # Ray 2.60 deprecates the only way to set how often an actor is restarted.
            warnings.filterwarnings("ignore", message=".*ray_remote_args.* is deprecated")
            return ds.map_batches(
                self.actor,
                fn_constructor_args=(Serving(lane.label, recipe, lane.write, limits, lane.retries), roll),
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
                max_restarts=_ALWAYS,
                max_task_retries=_ALWAYS,
            )

    def check_nodes(self, python: str) -> None:
        """Check the quality environment on every node, as engines' processes are started in it there.

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
            load = Scoring(lane.scorer, lane.fills, lane.cuts)
        else:
            assert isinstance(lane.pool, Translator)
            load = Generation(
                self.engine_arguments(lane.pool),
                lane.max_output_tokens,
                lane.end_tokens,
                lane.pool.max_num_seqs,
            )
        sources = [lane.pool.source.removeprefix(COMET), *([lane.prompter.source] if lane.prompter else [])]
        return Recipe(
            load,
            lane.prompter,
            lane.limit_tokens,
            lane.python,
            self.environment(lane.pool),
            fetched.copies(*sources),
            lane.patience,
        )

    def engine_arguments(self, pool: Translator) -> dict[str, Any]:
        """vLLM's EngineArgs for a pool; those of the pool's `engine` replace the others."""
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
        """The environment variables of an engine's process."""
        environment = dict(NO_TELEMETRY)
        if self.gpus(pool):
            # The engine's core runs in its own process: it steps on while this one handles rows and texts.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        else:
            environment |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "OMP_NUM_THREADS": str(pool.threads or self.session.cores),
                # How long a thread spins for the next step before it sleeps. Waking it takes longer than most
                # waits, above all on a virtual machine.
                "GOMP_SPINCOUNT": "200000",
            }
        return environment | pool.variables


def _packed_groups(lane: Lane) -> list[bytes]:
    """The pickled input of each reading task: a group of work units, and what reads their pending rows."""
    return [pickle.dumps((lane.pending, group)) for group in groups(lane.units, lambda work: work.unit)]


def _batch_rows(lane: Lane) -> int:
    """Rows of a batch of requests. Of a lane that starts ahead, the rows are not known yet."""
    share = sum(unit.unit.rows for unit in lane.units) // lane.pool.replicas.max
    few, many = min(_SOME_BATCH_ROWS, share // _FEW_BATCHES), share // _MANY_BATCHES
    rows = min(_MOST_BATCH_ROWS, max(_FEWEST_BATCH_ROWS, few, many)) if lane.units else _SOME_BATCH_ROWS
    return min(rows, lane.part_rows)


def _reader(batch_rows: int) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """Reads units into batches of `batch_rows` requests, or fewer if they are long; a batch may span units.
    Each batch is one row of a block, so that Ray Data neither splits nor merges it."""

    def tables(block: pa.Table) -> Iterator[pa.Table]:
        for group in block["group"].to_pylist():
            pending, units = pickle.loads(group)
            for unit in units:
                for table in pending(unit):
                    yield from _short(table)

    def batches(block: pa.Table) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        rows = size = 0
        for table in tables(block):
            waiting.append(table)
            rows, size = rows + table.num_rows, size + table.nbytes
            while rows >= batch_rows or size >= _BATCH_BYTES:
                whole = pa.concat_tables(waiting)
                yield _packed(whole.slice(0, batch_rows))
                waiting = [whole.slice(batch_rows)] if rows > batch_rows else []
                rows, size = max(0, rows - batch_rows), sum(left.nbytes for left in waiting)
        if rows:
            yield _packed(pa.concat_tables(waiting))

    return batches


def _short(table: pa.Table) -> Iterator[pa.Table]:
    """A table in slices of about `_BATCH_BYTES`, or of one row."""
    rows = max(1, table.num_rows * _BATCH_BYTES // max(1, table.nbytes))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _packed(requests: pa.Table) -> pa.Table:
    # Copied: a slice would be pickled with the whole of its buffers.
    requests = requests.take(pa.array(range(requests.num_rows)))
    return pa.table({BATCH: pa.array([pickle.dumps(requests, protocol=5)], pa.binary())})
