"""Actors that make up answers in the place of engines, all rows of a batch at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.actor import EngineActor, Serving
from routelmt_batch.engines.gathering import Gathering
from routelmt_batch.engines.lanes import RESULTS, Each
from routelmt_batch.engines.models import Generation, Scoring
from routelmt_batch.engines.pools import Pools

_ONE = np.float64(2**64)


class _NoEngine:
    started_at = ready_at = 0.0


class MadeUpActor(EngineActor):
    """Makes up answers from a hash of each row's place, all rows of a batch at once."""

    def __init__(self, serving: Serving, deaths: Any | None) -> None:
        self._lane, self._name = serving.lane, f"{serving.lane}-{os.getpid()}"
        self._gathering = Gathering(serving.write, serving.limits)
        self._load = serving.recipe.load
        self._engine = _NoEngine()  # type: ignore[assignment]
        _NoEngine.started_at = _NoEngine.ready_at = time.time()

    def _results(self, requests: pa.Table) -> pa.Table:
        rows = requests.num_rows
        sent = pc.equal(requests["skip"], "")
        lengths = pc.add(pc.divide(pc.fill_null(pc.utf8_length(requests["source"]), 0), 4), 1).cast(
            pa.int32()
        )
        columns: dict[str, Any] = {field.name: pa.nulls(rows, field.type) for field in RESULTS}
        columns |= {name: requests[name] for name in ("shard", "row", "skip")}
        columns |= {"error": pa.array([""] * rows), "prompt_tokens": pc.if_else(sent, lengths, None)}
        if isinstance(self._load, Generation):
            text = pc.binary_join_element_wise(requests["source"], self._lane, " ")
            columns |= {
                "text": pc.if_else(sent, text, None),
                "output_tokens": pc.if_else(sent, lengths, None),
                "truncated": pa.array(np.zeros(rows, bool)),
            }
        elif isinstance(self._load, Scoring) and self._load.fills == "reasons":
            columns["reasons"] = pa.array([[]] * rows, pa.list_(pa.string()))
        else:
            place = requests["row"].to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            place ^= place >> np.uint64(29)
            score = (place * np.uint64(0xBF58476D1CE4E5B9)).astype(np.float64) / _ONE
            columns["score"] = pc.if_else(sent, pa.array(score), None)
            columns["cut"] = pa.array(np.zeros(rows, bool))
        return pa.table([columns[field.name] for field in RESULTS], schema=RESULTS)


class MadeUpPools(Pools):
    """Pools of such actors. Each task notes the node that it ran on in the folder `notes`."""

    actor = MadeUpActor
    notes: Path | None = None

    def each(self, work: Callable[[Any, Any], Any], items: Iterable[Any]) -> Each:
        return super().each(_Noted(work, self.notes) if self.notes else work, items)


@dataclass(frozen=True)
class _Noted:
    work: Callable[[Any, Any], Any]
    folder: Path

    def __call__(self, item: Any, stop: Any) -> Any:
        import ray

        node = ray.get_runtime_context().get_node_id()
        with open(self.folder / f"{type(self.work).__name__}-{node[:8]}", "a") as file:
            file.write(".")
        return self.work(item, stop)
