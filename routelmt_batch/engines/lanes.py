"""The interface of passes and engines: lanes of rows go in, receipts of committed parts come out.

A lane is one pool's share of a pass. Its rows are read, processed and written where the engines are: only
work units go in, and only receipts come back. This module knows no engine. It is imported in the quality
environment, too, and imports only what is installed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.directions import numbers
from routelmt_batch.patience import PATIENCE, Patience

if TYPE_CHECKING:
    from routelmt_batch.prompts import Prompter
    from routelmt_batch.rows import Route, Stage
    from routelmt_batch.spec import Pool
    from routelmt_batch.threads import Stop

Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A row for an engine. A row with a `skip` reason is not sent to it. Prompts are made from the text and the
# languages; a scorer may read further columns.
REQUESTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("skip", pa.string()),
        ("source", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
    ]
)

# A row back from an engine. Its answer is a score, scores by reference, reasons to doubt a translation, or a
# text; without one, `error` says why. `cut`: the scorer read only the beginning of the text. `truncated`: the
# translation ends without an end token. `direction`: see directions.numbers.
RESULTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("direction", pa.int16()),
        ("skip", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("score", pa.float64()),
        ("scores", pa.list_(pa.float64())),
        ("reasons", pa.list_(pa.string())),
        ("cut", pa.bool_()),
        ("text", pa.string()),
        ("output_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)


class Answer(NamedTuple):
    """An engine's answer to one row: the columns of RESULTS that the engine fills."""

    skip: str = ""
    error: str = ""
    prompt_tokens: int | None = None
    score: float | None = None
    scores: Sequence[float] | None = None
    reasons: Sequence[str] | None = None
    cut: bool | None = None
    text: str | None = None
    output_tokens: int | None = None
    truncated: bool | None = None


def as_results(requests: pa.Table, answers: Mapping[int, Answer]) -> pa.Table:
    """The RESULTS table of requests and of their answers, by index; rows without one have a `skip` reason."""
    skips = requests["skip"].to_pylist()
    rows = [answers.get(index) or Answer(skip) for index, skip in enumerate(skips)]
    columns = zip(*rows, strict=True) if rows else [()] * len(Answer._fields)
    arrays = [
        pa.array(values, RESULTS.field(name).type)
        for name, values in zip(Answer._fields, columns, strict=True)
    ]
    direction: Any = pa.nulls(requests.num_rows, pa.int16())
    if "source_lang" in requests.column_names:
        direction = numbers(requests["source_lang"], requests["target_lang"])
    return pa.table([requests["shard"], requests["row"], direction, *arrays], schema=RESULTS)


class Scorer(Protocol):
    """Returns a value for each row of a table: a score (a router's is higher for the large model; NaN: none),
    or the scores or reasons that its lane `fills`. It is pickled into the engine's process, and loads its
    model there, once."""

    def __call__(self, rows: pa.Table) -> Scores | list[list[float]] | list[list[str]]: ...


@dataclass(frozen=True)
class Receipt:
    """A part that was written: what `Lane.write` returned, the engine, when that engine was started and when
    it was ready (seconds since the epoch), and how many receipts the part has. It counts when all of them
    have come: if one is lost, some of its rows are processed again."""

    lane: str
    part: Any
    engine: str
    started_at: float
    ready_at: float
    of: int = 1


@dataclass(frozen=True)
class Pending:
    """The only source for which rows of a work unit a lane still has to process.

    Args:
        wanted: returns the mask of these rows in a unit, from what is committed.
        read: reads the rows of a unit and mask as REQUESTS tables.
    """

    wanted: Callable[[Any], Mask]
    read: Callable[[Any, Mask], Iterator[pa.Table]]

    def __call__(self, unit: Any) -> Iterator[pa.Table]:
        wanted = self.wanted(unit)
        if wanted.any():
            yield from self.read(unit, wanted)


Each = AbstractContextManager[Iterator[Any]]
Tell = Callable[[str, Literal["info", "warning"]], None]  # takes a message for the operator


@dataclass(frozen=True)
class Lane:
    """One pool's share of a pass.

    Args:
        stage: the stage that its rows are committed to.
        model: the model that translates, or whose translations are read; None: neither.
        pending: the rows of its units that it has to process.
        write: writes a RESULTS table as a part; its return value goes into the receipt. Like `pending`, it
            must be picklable.
        part_rows: a part is closed when it has so many rows, if nothing closes it before.
        prompter: tokenizes each row for the model; rows of more than `limit_tokens` are `too_long`.
        scorer: scores the rows; None: vLLM translates them, in at most `max_output_tokens`.
        fills: the column of RESULTS that the scorer's values go into.
        cuts: marks the rows whose text is too long for the scorer, which reads only the beginning.
        retries: how often a row that fails is tried again.
        patience: how long an engine may take to start, and to answer any of its rows.
        python: the interpreter of the engines' processes; None: this one.
    """

    label: str
    pool: Pool
    units: Sequence[Any]
    pending: Pending
    write: Callable[[pa.Table], Any]
    part_rows: int
    stage: Stage
    model: Route | None = None
    prompter: Prompter | None = None
    limit_tokens: int = 0
    scorer: Scorer | None = None
    fills: Literal["score", "scores", "reasons"] = "score"
    cuts: Callable[[pa.Table], Mask] | None = None
    retries: int = 0
    patience: Patience = PATIENCE
    python: str | None = None
    max_output_tokens: int = 0
    end_tokens: tuple[int, ...] = ()


class Engine(Protocol):
    """Runs lanes together, as one pass, and yields receipts as parts are written."""

    def run(self, lanes: Sequence[Lane], tell: Tell = ...) -> Iterable[Receipt]: ...

    def check_fit(self, together: Sequence[Mapping[str, Pool]]) -> list[str]:
        """Refuse pools (by label, in groups that run at once) that this machine cannot hold. For a cluster,
        which may grow, return warnings instead."""
        ...

    def each(self, work: Callable[[Any, Stop], Any], items: Iterable[Any]) -> Each:
        """Results of picklable work on picklable items, in their order: on all nodes of a cluster, or in this
        process's threads. See threads.each."""
        ...

    def has_room_for(self, pools: Sequence[Pool], beside: Sequence[Pool] = ()) -> bool:
        """Whether engines of all the pools fit beside each other, and beside other pools at their largest."""
        ...

    def start_ahead(self, lanes: Sequence[Lane], beside: Sequence[Lane]) -> bool:
        """Start the engines of a later pass if there is room beside the running lanes; returns whether it
        did. The units and pending rows of `lanes` are ignored here: `run` brings them."""
        ...
