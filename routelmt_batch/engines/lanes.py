"""What a pass asks of engines: lanes of rows in, receipts of committed parts out.

A lane is one pool's share of a pass. It is read, run and written where the engine is; only work
units go in and only receipts come back. It knows no engine. Actors in the quality environment load this
module: it imports nothing that is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from routelmt_batch.spec import Pool

Task = Literal["score", "generate"]
Scores = npt.NDArray[np.float64]
Scorer = Callable[[pa.Table], Scores]  # of a table's rows; NaN where there is none
Mask = npt.NDArray[np.bool_]

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

# A row back from an engine. `error` is empty, or why there is neither score nor text. `cut`: a scorer
# read the beginning of its text only.
RESULTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("prompt_tokens", pa.int32()),
        ("skip", pa.string()),
        ("error", pa.string()),
        ("score", pa.float64()),
        ("cut", pa.bool_()),
        ("text", pa.string()),
        ("output_tokens", pa.int32()),
        ("last_token", pa.int64()),
        ("engine_seconds", pa.float64()),
    ]
)

Receipt = dict[str, Any]
Tell = Callable[[str, Literal["info", "warning"]], None]  # takes what an operator should know while it runs
_PROBES = 8


@dataclass(frozen=True)
class Lane:
    """`read` turns a work unit into REQUESTS tables; `write` commits a RESULTS table of at most
    `part_rows` rows and says so in a receipt. Both must pickle. With a `scorer` no vLLM engine scores
    the rows but an actor of the pool that holds it: whatever columns it reads stand beside those of
    REQUESTS. `cuts` tells the rows of which it reads the beginning only; `python` is the interpreter of
    its actors, None for this one."""

    label: str
    pool: Pool
    task: Task
    units: Sequence[Any]
    read: Callable[[Any], Iterator[pa.Table]]
    write: Callable[[pa.Table], Receipt]
    part_rows: int
    retries: int = 0
    scorer: Scorer | None = None
    cuts: Callable[[pa.Table], Mask] | None = None
    python: str | None = None
    max_output_tokens: int = 0
    end_tokens: tuple[int, ...] = field(default=())


def scored(
    requests: pa.Table,
    scorer: Scorer,
    cuts: Callable[[pa.Table], Mask] | None = None,
    proven: bool = False,
) -> pa.Table:
    """RESULTS of a scorer: rows with a `skip` reason pass it by, those on which it raises have an `error`.

    Args:
        proven: it has scored rows before, so that it is for the rows where it fails.

    Raises:
        Exception: what the scorer raises, if it does so on whatever row it is given; see `_blame_rows`.
    """
    started = time.time()
    wanted = pc.equal(pc.fill_null(requests["skip"], ""), "").to_numpy()
    scores = np.full(requests.num_rows, np.nan)
    errors = np.full(requests.num_rows, "", object)
    if wanted.any():
        scores[wanted], errors[wanted] = _tried(requests.filter(pa.array(wanted)), scorer, proven)
    cut = np.zeros(requests.num_rows, bool)
    good = wanted & (errors == "")
    if cuts and good.any():
        cut[good] = cuts(requests.filter(pa.array(good)))
    seconds = time.time() - started
    known = {
        **{name: requests[name] for name in ("shard", "row", "prompt_tokens", "skip")},
        "error": pa.array(errors, pa.string()),
        "score": pa.array(scores, pa.float64(), mask=~good),
        "cut": pa.array(cut),
        "engine_seconds": pa.array(np.full(requests.num_rows, seconds)),
    }
    columns = [known.get(field.name, pa.nulls(requests.num_rows, field.type)) for field in RESULTS]
    return pa.table(columns, schema=RESULTS)


def _tried(rows: pa.Table, scorer: Scorer, blamed: bool = False) -> tuple[Scores, npt.NDArray[np.object_]]:
    """Scores, and the name of the error of each row that fails alone; the others are found by halves.

    `blamed`: where it fails, it is not for the scorer's fault.
    """
    try:
        return scorer(rows), np.full(rows.num_rows, "", object)
    except Exception as error:
        if rows.num_rows == 1:
            # The name alone: a message may quote the row.
            return np.array([np.nan]), np.array([type(error).__name__], object)
        if not blamed:
            _blame_rows(rows, scorer, error)
    half = rows.num_rows // 2
    parts = [_tried(part, scorer, blamed=True) for part in (rows.slice(0, half), rows.slice(half))]
    scores, errors = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(errors)


def _blame_rows(rows: pa.Table, scorer: Scorer, error: Exception) -> None:
    """Raise if it is the scorer that fails, such as one whose model does not load, and not some row.

    So it is if rows from all over the block fail, each alone, with the same error.

    Raises:
        Exception: `error`, or its name alone where the rows' errors differ in their text, which may
            then quote a row.
    """
    told = {str(error)}
    for place in np.unique(np.linspace(0, rows.num_rows - 1, _PROBES).astype(int)):
        try:
            scorer(rows.slice(place, 1))
        except Exception as again:
            if type(again) is not type(error):
                return
            told.add(str(again))
        else:
            return
    if len(told) == 1:
        raise error
    raise RuntimeError(f"the scorer raises {type(error).__name__} on every row") from None


class Engine(Protocol):
    """Runs lanes together, as one pass, and yields receipts as parts are written."""

    def run(self, lanes: Sequence[Lane], tell: Tell = ...) -> Iterable[Receipt]: ...

    def check_fit(self, together: Sequence[Mapping[str, Pool]]) -> list[str]:
        """Refuse pools (by label, in groups that run at once) that this machine can never hold; of a
        cluster, which may grow, say so."""
        ...

    def has_room_for(self, pools: Sequence[Pool]) -> bool:
        """Whether engines of all the pools fit side by side."""
        ...
