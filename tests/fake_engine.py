"""An engine without a model, in this process: what a pass commits is real, only the numbers are made up.

It stands in where a test kills the process a hundred times; real engines run in tests/engines.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from routelmt_batch.engines.lanes import RESULTS, Lane, Receipt, scored

END_TOKEN = 1


def gain_of(request: dict[str, Any]) -> float:
    """A number of few values, so that there are ties, from the row's prompt alone."""
    digest = hashlib.sha256(str(request["tokenized_prompt"]).encode()).digest()
    return float(digest[0] % 7) - 3.0


class FakeEngine:
    """Writes each row that it is sent to `log`, a line `label shard row`."""

    def __init__(
        self, log: Path, fails: Callable[[str, dict[str, Any]], str] = lambda label, row: ""
    ) -> None:
        self.log = log
        self.fails = fails
        self.lanes_together: list[list[str]] = []
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

    def has_room_for(self, pools: Sequence[Any]) -> bool:
        return self.room

    def run(self, lanes: Sequence[Lane], tell: Callable[[str, str], None] = print) -> Iterator[Receipt]:
        self.lanes_together.append([lane.label for lane in lanes])
        for lane in lanes:
            if lane.scorer:
                yield from self._apply(lane)
                continue
            requests: list[dict[str, Any]] = []
            for unit in lane.units:
                for table in lane.read(unit):
                    requests += table.to_pylist()
            for start in range(0, len(requests), lane.part_rows):
                yield lane.write(self._results(lane, requests[start : start + lane.part_rows]))

    def _apply(self, lane: Lane) -> Iterator[Receipt]:
        """A scorer is real wherever it runs."""
        for unit in lane.units:
            for table in lane.read(unit):
                for start in range(0, table.num_rows, lane.part_rows):
                    yield lane.write(scored(table.slice(start, lane.part_rows), lane.scorer, lane.cuts))

    def _results(self, lane: Lane, requests: list[dict[str, Any]]) -> pa.Table:
        with open(self.log, "a") as file:
            file.writelines(f"{lane.label} {line['shard']} {line['row']}\n" for line in requests)
        return pa.Table.from_pylist([self._result(lane, line) for line in requests], RESULTS)

    def _result(self, lane: Lane, line: dict[str, Any]) -> dict[str, Any]:
        error = "" if line["skip"] else self.fails(lane.label, line)
        result = {**line, "error": error, "engine_seconds": 0.0}
        if line["skip"] or error:
            return result
        if lane.task == "score":
            return result | {"score": gain_of(line)}
        text = f" {lane.label} of {line['row']} "
        return result | {"text": text, "output_tokens": 5, "last_token": END_TOKEN}
