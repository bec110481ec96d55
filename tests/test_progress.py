"""How progress is told."""

import io

import pytest
from rich.console import Console

from routelmt_batch import progress
from routelmt_batch.progress import Bars, speed


@pytest.mark.parametrize(
    ("per_second", "told"),
    [(1234.4, "1,234 rows/s"), (1.0, "1 rows/s"), (0.4, "2.5 s/row"), (0.0, "0 rows/s")],
)
def test_what_is_slow_is_told_in_seconds(per_second, told):
    assert speed(per_second, "rows") == told


def test_speed_and_time_left_are_counted_from_the_first_rows(monkeypatch):
    """What comes before them is an engine's start."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    said = io.StringIO()
    with Bars(Console(file=said, width=40)).rows("score", 272) as advance:
        for at, rows in ((36.0, 64), (70.0, 102), (71.0, 106)):
            clock[0] = at
            advance(rows)
    assert said.getvalue().splitlines() == [
        "score: 272 of 272 rows to do",
        "score: 64/272 rows",
        "score: 166/272 rows, 3 rows/s, 35 s left",
        "score: 272/272 rows in 71.0 s",
    ]
