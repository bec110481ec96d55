"""Pools of vLLM engines as ray.data.llm processors, one Ray Dataset per pass.

CPU and GPU go through the same processors; only resources and a few engine settings differ.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from routelmt_batch import quality
from routelmt_batch.engines.lanes import RESULTS, Lane, Receipt, Tell
from routelmt_batch.engines.scorer_actor import ScorerActor
from routelmt_batch.engines.session import NO_TELEMETRY, RESTARTS, Session
from routelmt_batch.engines.watch import watching
from routelmt_batch.errors import UsageError
from routelmt_batch.spec import Pool

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.data.llm import Processor

_CPU_KV_CACHE_BYTES = 1 << 30
# A finite number is used up in no time: until Ray knows that an actor is gone, each call of it that fails to
# connect counts. What bounds them is the number of times that their actor is restarted.
_UNTIL_ITS_ACTOR_ENDS = -1
ERROR = "__inference_error__"


class VllmEngine:
    """Runs lanes in a Ray session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def gpus(self, pool: Pool) -> int:
        """GPUs of one replica: the spec's, else its tensor parallel size where GPUs are."""
        if pool.gpus is not None:
            return pool.gpus
        return pool.tensor_parallel_size if self.session.resource("GPU") else 0

    def has_room_for(self, pools: Sequence[Pool]) -> bool:
        if self.session.local:
            # Side by side on one machine's cores two engines take as long as one after the other.
            gpus = self.session.resource("GPU")
            return 0 < sum(self.gpus(pool) * pool.replicas for pool in pools) <= gpus
        needs = {
            "GPU": sum(self.gpus(pool) * pool.replicas for pool in pools),
            "CPU": sum(pool.cpus * pool.replicas for pool in pools) + 1,
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
        datasets = [self._dataset(lane) for lane in lanes]
        self.session.take_signals()  # building a processor calls ray.init
        whole = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
        with (
            self.session.explaining(", ".join(lane.label for lane in lanes)),
            watching(tell, lambda: self.check_fit(pools)),
        ):
            for batch in whole.iter_batches(batch_size=None, batch_format="pyarrow"):
                for receipt in batch.column("receipt").to_pylist():
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
                    label: pool.replicas * sum(bundle.get(name, 0) for bundle in self.bundles(pool))
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

    def _dataset(self, lane: Lane) -> Dataset:
        import ray.data

        items = [{"unit": pickle.dumps(unit)} for unit in lane.units]
        ds = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        ds = ds.map_batches(
            _reader(lane.read), batch_size=1, batch_format="pyarrow", num_cpus=self.session.task_cpus
        )
        # Strict: blocks of exactly part_rows rows, across shards; a block is an engine batch and
        # becomes a part.
        ds = ds.repartition(target_num_rows_per_block=lane.part_rows, strict=True)
        # Ray has no argument for it: by default it wants a whole CPU free on some node, and waits in
        # silence where engines hold all but a fraction of each.
        ds._logical_plan.dag.ray_remote_args["num_cpus"] = self.session.task_cpus
        ds = self._applied(lane, ds) if lane.scorer else self._processor(lane)(ds)
        return ds.map_batches(
            _writer(lane.write), batch_size=None, batch_format="pyarrow", num_cpus=self.session.task_cpus
        )

    def _applied(self, lane: Lane, ds: Dataset) -> Dataset:
        """The dataset through a pool of actors that hold the lane's scorer."""
        pool = lane.pool
        runtime_env: dict[str, Any] = {"env_vars": self.environment(pool)}
        if lane.python:
            runtime_env["py_executable"] = lane.python
            if not self.session.local:
                self.check_nodes(lane.python)
        with warnings.catch_warnings():
            # Ray 2.60 deprecates the only way there is to bound an actor's restarts.
            warnings.filterwarnings("ignore", message=".*ray_remote_args.* is deprecated")
            return ds.map_batches(
                ScorerActor,
                fn_constructor_args=(lane.scorer, lane.cuts),
                batch_size=None,
                batch_format="pyarrow",
                concurrency=(pool.replicas, pool.replicas),
                num_cpus=pool.cpus,
                num_gpus=self.gpus(pool) or None,
                runtime_env=runtime_env,
                max_restarts=RESTARTS,
                max_task_retries=_UNTIL_ITS_ACTOR_ENDS,
            )

    def check_nodes(self, python: str) -> None:
        """Try the quality environment on every node, where Ray would start workers in it unasked.

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

    def _processor(self, lane: Lane) -> Processor:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        from routelmt_batch.engines.actor import EngineActor

        pool, task_cpus = lane.pool, self.session.task_cpus
        config = vLLMEngineProcessorConfig(
            model_source=pool.source,
            task_type="classify" if lane.task == "score" else "generate",
            engine_kwargs=self.engine_kwargs(pool),
            batch_size=lane.part_rows,
            # Enough batches in flight that the engine's sequences never run dry.
            max_concurrent_batches=max(8, 2 * -(-pool.max_num_seqs // lane.part_rows)),
            concurrency=(pool.replicas, pool.replicas),
            placement_group_config={"bundles": self.bundles(pool)},
            runtime_env={"env_vars": self.environment(pool)},
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        processor = build_processor(
            config,
            preprocess=_request(lane),
            postprocess=_score if lane.task == "score" else _translation,
            preprocess_map_kwargs={"num_cpus": task_cpus},
            postprocess_map_kwargs={"num_cpus": task_cpus},
        )
        (name, stage), *_ = processor.stages.items()
        # model_construct: assigning to the built stage would run its resource rules a second time.
        processor.stages[name] = type(stage).model_construct(
            fn=EngineActor,
            fn_constructor_kwargs={**stage.fn_constructor_kwargs, "retries": lane.retries},
            map_batches_kwargs={
                **stage.map_batches_kwargs,
                "max_restarts": RESTARTS,
                "max_task_retries": _UNTIL_ITS_ACTOR_ENDS,
            },
        )
        return processor

    def engine_kwargs(self, pool: Pool) -> dict[str, Any]:
        """vLLM engine arguments of a pool; its free settings come last."""
        kwargs: dict[str, Any] = {
            "dtype": pool.dtype,
            "max_model_len": pool.max_model_len_tokens,
            # Ray builds the engine in a way that falls back to small defaults: always set both.
            "max_num_batched_tokens": max(pool.max_num_batched_tokens, pool.max_model_len_tokens),
            "max_num_seqs": pool.max_num_seqs,
            "tensor_parallel_size": pool.tensor_parallel_size,
            "trust_remote_code": pool.trust_remote_code,
            "disable_log_stats": True,
        }
        if not self.gpus(pool):
            kwargs |= {"enforce_eager": True, "kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES}
        return kwargs | pool.engine

    def environment(self, pool: Pool) -> dict[str, str]:
        environment = dict(NO_TELEMETRY)
        if not self.gpus(pool):
            # Without a worker process of its own the engine starts in two processes instead of
            # three: a third less time. Its threads are then set here (vllm/platforms/cpu.py).
            environment |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "OMP_NUM_THREADS": str(pool.threads or self.session.cores),
            }
        return environment | pool.env

    def bundles(self, pool: Pool) -> list[dict[str, float]]:
        gpus, workers = self.gpus(pool), pool.tensor_parallel_size
        if not gpus:
            return [{"CPU": pool.cpus}]
        if workers == 1:
            return [{"GPU": gpus, "CPU": pool.cpus}]
        return [{"GPU": gpus / workers, "CPU": pool.cpus}] * workers


def _reader(read: Callable[[Any], Iterator[pa.Table]]) -> Callable[[pa.Table], Iterator[pa.Table]]:
    def read_unit(batch: pa.Table) -> Iterator[pa.Table]:
        for unit in batch.column("unit").to_pylist():
            yield from read(pickle.loads(unit))

    return read_unit


def _request(lane: Lane) -> Callable[[dict[str, Any]], dict[str, Any]]:
    extra: dict[str, Any] = {}
    if lane.task == "generate":
        extra["sampling_params"] = {
            "temperature": 0.0,
            "max_tokens": lane.max_output_tokens,
            "stop_token_ids": list(lane.end_tokens),
        }

    def request(row: dict[str, Any]) -> dict[str, Any]:
        # Stages pass a row by that already has an error: that is how skipped rows travel along.
        return {**extra, ERROR: row["skip"] or ""}

    return request


_CARRIED = ("shard", "row", "prompt_tokens", "skip")


def _score(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: row[name] for name in _CARRIED},
        "score": float(row["embeddings"][0]),
        "engine_seconds": row["time_taken_llm"],
    }


def _translation(row: dict[str, Any]) -> dict[str, Any]:
    tokens = row["generated_tokens"]
    return {
        **{name: row[name] for name in _CARRIED},
        "text": row["generated_text"],
        "output_tokens": len(tokens),
        "last_token": int(tokens[-1]) if len(tokens) else -1,
        "engine_seconds": row["time_taken_llm"],
    }


def _writer(write: Callable[[pa.Table], Receipt]) -> Callable[[pa.Table], pa.Table]:
    def write_part(block: pa.Table) -> pa.Table:
        if not block.num_rows:
            return pa.table({"receipt": pa.array([], pa.binary())})
        results = as_results(block) if ERROR in block.column_names else block
        return pa.table({"receipt": [pickle.dumps(write(results))]})

    return write_part


def as_results(block: pa.Table) -> pa.Table:
    """A processor's block as RESULTS: failed rows lack what successful rows have."""
    errors = block.column(ERROR).to_pylist()
    skips = block.column("skip").to_pylist()
    columns = {}
    for field in RESULTS:
        if field.name == "error":
            values = ["" if skip else error for skip, error in zip(skips, errors, strict=True)]
            columns[field.name] = pa.array(values, field.type)
        elif field.name in block.column_names:
            columns[field.name] = block.column(field.name).cast(field.type)
        else:
            columns[field.name] = pa.nulls(block.num_rows, field.type)
    return pa.table(columns, schema=RESULTS)
