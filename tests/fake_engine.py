"""An engine without a model, in this process: what a pass commits is real, only the numbers are made up.

It stands in where a test kills the process a hundred times; real engines run in tests/engines.
"""

import hashlib
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from routelmt_batch.engines.child import tokenized
from routelmt_batch.engines.lanes import Answer, Lane, Receipt, as_results
from routelmt_batch.engines.models import Scoring, scored
from routelmt_batch.routers.scorers import Prefill
from routelmt_batch.threads import each

TRUNCATED = False  # whether texts end before their end token


def gain_of(request: dict[str, Any]) -> float:
    """A number of few values, so that there are ties, from the row's prompt alone."""
    digest = hashlib.sha256(str(request["tokens"]).encode()).digest()
    return float(digest[0] % 7) - 3.0


class FakeEngine:
    """Writes each row that it is sent to `log`, a line `label shard row`."""

    def __init__(
        self, log: Path, fails: Callable[[str, dict[str, Any]], str] = lambda label, row: ""
    ) -> None:
        self.log = log
        self.fails = fails
        self.lanes_together: list[list[str]] = []
        self.started_ahead: list[list[str]] = []
        self.room = False
        self.room_for = 99  # pools at once, of a cluster

    @contextmanager
    def opened(self, folder: Any) -> Iterator["FakeEngine"]:
        yield self

    @contextmanager
    def stopping(self, when: Callable[[str, dict[str, Any]], bool]) -> Iterator[None]:
        """What runs inside is stopped at the first row of a lane for which `when` holds."""

        def fails(label: str, row: dict[str, Any]) -> str:
            if when(label, row):
                raise OSError("stopped on the way")
            return ""

        before, self.fails = self.fails, fails
        with pytest.raises(OSError, match="stopped on the way"):
            yield
        self.fails = before

    def check_fit(self, together: Sequence[Any]) -> list[str]:
        return ["the job waits for more" for pools in together if len(pools) > self.room_for]

    def has_room_for(self, pools: Sequence[Any], beside: Sequence[Any] = ()) -> bool:
        return self.room

    def each(self, work: Callable[[Any, Any], Any], items: Iterable[Any]) -> Any:
        return each(pickle.loads(pickle.dumps(work)), map(pickle.loads, map(pickle.dumps, items)))

    def start_ahead(self, lanes: Sequence[Lane], beside: Sequence[Lane]) -> bool:
        self.started_ahead.append([lane.label for lane in lanes])
        return bool(lanes) and self.room

    def run(self, lanes: Sequence[Lane], tell: Callable[[str, str], None] = print) -> Iterator[Receipt]:
        self.lanes_together.append([lane.label for lane in lanes])
        for lane in lanes:
            for part in self._parts(lane):
                yield Receipt(lane.label, lane.write(part), "made-up", time.time(), time.time())

    def _parts(self, lane: Lane) -> Iterator[pa.Table]:
        """RESULTS of a lane's rows, across the borders of units; a scorer's, which is real, within them."""
        tables = (table for unit in lane.units for table in lane.pending(unit))
        made_up = lane.scorer is None or isinstance(lane.scorer, Prefill)
        if made_up:
            whole = list(tables)
            tables = iter([pa.concat_tables(whole)] if whole else [])
        for table in tables:
            for start in range(0, table.num_rows, lane.part_rows):
                yield self._results(lane, table.slice(start, lane.part_rows), made_up)

    def _results(self, lane: Lane, requests: pa.Table, made_up: bool) -> pa.Table:
        if made_up:
            with open(self.log, "a") as file:
                rows = zip(requests["shard"].to_pylist(), requests["row"].to_pylist(), strict=True)
                file.writelines(f"{lane.label} {shard} {row}\n" for shard, row in rows)
        places = [place for place, skip in enumerate(requests["skip"].to_pylist()) if not skip]
        wanted = requests.take(pa.array(places, pa.int64()))
        answers: dict[int, Answer] = {}
        if lane.prompter and places:
            kept, wanted, refused = tokenized(places, wanted, lane.prompter, lane.limit_tokens)
            answers, places = dict(refused), list(kept)
        if made_up:
            lines = wanted.to_pylist()
            found = [self._answer(lane, line) for line in lines]
        else:
            found = _scored(wanted, Scoring(lane.scorer, lane.fills, lane.cuts))
        return as_results(requests, answers | dict(zip(places, found, strict=True)))

    def _answer(self, lane: Lane, line: dict[str, Any]) -> Answer:
        length = len(line["tokens"])
        if error := self.fails(lane.label, line):
            return Answer(error=error, prompt_tokens=length)
        if lane.scorer:
            return Answer(prompt_tokens=length, score=gain_of(line))
        text = f" {lane.label} of {line['row']} "
        return Answer(prompt_tokens=length, text=text, output_tokens=5, truncated=TRUNCATED)


def _scored(rows: pa.Table, spec: Scoring) -> list[Answer]:
    """A scorer's answers; of rows that it fails on together, row by row."""
    if not rows.num_rows:
        return []
    try:
        return scored(rows, spec)
    except Exception as error:
        if rows.num_rows == 1:
            return [Answer(error=type(error).__name__)]
        return [answer for row in range(rows.num_rows) for answer in _scored(rows.slice(row, 1), spec)]
