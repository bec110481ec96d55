"""What a pass asks of engines: lanes of rows in, receipts of committed parts out.

A lane is one pool's share of a pass. It is read, run and written where the engine is; only work
units go in and only receipts come back. It knows no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.spec import Pool

Task = Literal["score", "generate", "apply"]

# A row on its way to an engine. With a `skip` reason it passes the engine by.
REQUESTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("prompt_tokens", pa.int32()),
        ("tokenized_prompt", pa.list_(pa.int32())),
        ("skip", pa.string()),
    ]
)

# A row back from an engine. `error` is empty, or why there is neither score nor text.
RESULTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("prompt_tokens", pa.int32()),
        ("skip", pa.string()),
        ("error", pa.string()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("output_tokens", pa.int32()),
        ("last_token", pa.int64()),
        ("engine_seconds", pa.float64()),
    ]
)

Receipt = dict[str, Any]


@dataclass(frozen=True)
class Lane:
    """`read` turns a work unit into REQUESTS tables; `write` commits a RESULTS table of at most
    `part_rows` rows and says so in a receipt. Both must pickle. Task `apply` runs `scorer` over the
    tables in an actor of the pool: whatever columns it reads stand beside those of REQUESTS."""

    label: str
    pool: Pool
    task: Task
    units: Sequence[Any]
    read: Callable[[Any], Iterator[pa.Table]]
    write: Callable[[pa.Table], Receipt]
    part_rows: int
    retries: int = 0
    scorer: Callable[[pa.Table], npt.NDArray[np.float64]] | None = None
    max_output_tokens: int = 0
    end_tokens: tuple[int, ...] = field(default=())


def scored(requests: pa.Table, scorer: Callable[[pa.Table], npt.NDArray[np.float64]]) -> pa.Table:
    """RESULTS of a scorer: rows with a `skip` reason pass it by."""
    started = time.time()
    wanted = pc.equal(pc.fill_null(requests["skip"], ""), "")
    scores = np.full(requests.num_rows, np.nan)
    mask = wanted.to_numpy().astype(bool)
    if mask.any():
        scores[mask] = scorer(requests.filter(wanted))
    seconds = time.time() - started
    known = {
        **{name: requests[name] for name in ("shard", "row", "prompt_tokens", "skip")},
        "error": pa.array([""] * requests.num_rows),
        "score": pa.array(scores, pa.float64(), mask=~mask),
        "engine_seconds": pa.array(np.full(requests.num_rows, seconds)),
    }
    columns = [known.get(field.name, pa.nulls(requests.num_rows, field.type)) for field in RESULTS]
    return pa.table(columns, schema=RESULTS)


class Engine(Protocol):
    """Runs lanes together, as one pass, and yields receipts as parts are written."""

    def run(self, lanes: Sequence[Lane]) -> Iterable[Receipt]: ...

    def check_fit(self, together: Sequence[Mapping[str, Pool]]) -> list[str]:
        """Refuse pools (by label, in groups that run at once) that this machine can never hold; of a
        cluster, which may grow, say so."""
        ...

    def has_room_for(self, pools: Sequence[Pool]) -> bool:
        """Whether engines of all the pools fit side by side."""
        ...
