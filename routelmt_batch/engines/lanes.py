"""What a pass asks of engines: lanes of rows in, receipts of committed parts out.

A lane is one pool's share of a pass. It is read, run and written where the engines are; only work units go
in and only receipts come back. This module knows no engine. An engine's process in the quality environment
loads it: it imports nothing that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from routelmt_batch.prompts import Prompter
    from routelmt_batch.rows import Route, Stage
    from routelmt_batch.spec import Pool

Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A row on its way to an engine. With a `skip` reason it passes the engine by. Prompts are made of the text
# and the languages; a scorer may read other columns beside these.
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

# A row back from an engine. `error` is empty, or why there is no answer: a score, reasons why a translation
# is doubtful, or a text. `cut`: a scorer read the beginning of its text only. `truncated`: its text ends
# before an end token.
RESULTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("skip", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("score", pa.float64()),
        ("reasons", pa.list_(pa.string())),
        ("cut", pa.bool_()),
        ("text", pa.string()),
        ("output_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)


class Answer(NamedTuple):
    """What an engine makes of one row: the columns of RESULTS that are its own."""

    skip: str = ""
    error: str = ""
    prompt_tokens: int | None = None
    score: float | None = None
    reasons: Sequence[str] | None = None
    cut: bool | None = None
    text: str | None = None
    output_tokens: int | None = None
    truncated: bool | None = None


def as_results(requests: pa.Table, answers: Mapping[int, Answer]) -> pa.Table:
    """RESULTS of requests: the answers by their index; rows without one have a `skip` reason."""
    skips = requests["skip"].to_pylist()
    rows = [answers.get(index) or Answer(skip) for index, skip in enumerate(skips)]
    columns = zip(*rows, strict=True) if rows else [()] * len(Answer._fields)
    arrays = [
        pa.array(values, RESULTS.field(name).type)
        for name, values in zip(Answer._fields, columns, strict=True)
    ]
    return pa.table([requests["shard"], requests["row"], *arrays], schema=RESULTS)


class Scorer(Protocol):
    """A value for each row of a table: a score, higher for the large model, NaN where there is none; or what
    else its lane `fills`. It travels to its process as a small value and loads what it needs there, once."""

    def __call__(self, rows: pa.Table) -> Scores | list[list[str]]: ...


@dataclass(frozen=True)
class Receipt:
    """A part that was written: what `Lane.write` said of it, by which engine, when that was started and when
    it was ready (seconds since the epoch)."""

    lane: str
    part: Any
    engine: str
    started_at: float
    ready_at: float


@dataclass(frozen=True)
class Pending:
    """The rows of a work unit that a lane has to do, and nothing else says which those are.

    Args:
        wanted: which they are, by what is committed.
        read: those rows of a unit as REQUESTS tables.
    """

    wanted: Callable[[Any], Mask]
    read: Callable[[Any, Mask], Iterator[pa.Table]]

    def __call__(self, unit: Any) -> Iterator[pa.Table]:
        wanted = self.wanted(unit)
        if wanted.any():
            yield from self.read(unit, wanted)


Tell = Callable[[str, Literal["info", "warning"]], None]  # takes what an operator should know while it runs


@dataclass(frozen=True)
class Lane:
    """One pool's share of a pass.

    Args:
        stage: what its rows are committed to.
        model: the one that translates, or whose translations are read; None: neither.
        pending: the rows of its units that it has to do.
        write: commits a RESULTS table of at most `part_rows` rows; what it returns is in the receipt. Like
            `pending` it must pickle.
        prompter: tokenizes each row for the model; longer prompts than `limit_tokens` are `too_long`.
        scorer: scores the rows; None: vLLM translates them, in at most `max_output_tokens`.
        fills: the column of RESULTS that the scorer's values are for.
        cuts: which rows the scorer reads the beginning of only.
        retries: further tries of a row that fails.
        python: interpreter of the engines' processes; None: this one.
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
    fills: Literal["score", "reasons"] = "score"
    cuts: Callable[[pa.Table], Mask] | None = None
    retries: int = 0
    python: str | None = None
    max_output_tokens: int = 0
    end_tokens: tuple[int, ...] = ()


class Engine(Protocol):
    """Runs lanes together, as one pass, and yields receipts as parts are written."""

    def run(self, lanes: Sequence[Lane], tell: Tell = ...) -> Iterable[Receipt]: ...

    def check_fit(self, together: Sequence[Mapping[str, Pool]]) -> list[str]:
        """Refuse pools (by label, in groups that run at once) that this machine can never hold; of a
        cluster, which may grow, say so."""
        ...

    def has_room_for(self, pools: Sequence[Pool], beside: Sequence[Pool] = ()) -> bool:
        """Whether engines of all the pools fit side by side, also beside others that may grow."""
        ...

    def start_ahead(self, lanes: Sequence[Lane], beside: Sequence[Lane]) -> bool:
        """Start the engines of a later pass, if there is room beside the lanes that run. Their units and
        pending rows do not matter: `run` gives them. Says whether it did."""
        ...
