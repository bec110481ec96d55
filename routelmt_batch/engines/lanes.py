"""What a pass asks of engines: lanes of rows in, receipts of committed parts out.

A lane is one pool's share of a pass. It is read, run and written where the engine is; only work
units go in and only receipts come back. It knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from routelmt_batch.spec import Pool

Task = Literal["score", "generate"]

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
    `part_rows` rows and says so in a receipt. Both must pickle."""

    label: str
    pool: Pool
    task: Task
    units: Sequence[Any]
    read: Callable[[Any], Iterator[pa.Table]]
    write: Callable[[pa.Table], Receipt]
    part_rows: int
    retries: int = 0
    max_output_tokens: int = 0
    end_tokens: tuple[int, ...] = field(default=())


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
