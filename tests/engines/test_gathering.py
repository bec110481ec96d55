"""Calls that run at once share parts, and none returns before its rows are written."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pytest

from routelmt_batch.engines import gathering
from routelmt_batch.engines.gathering import Gathering, PartLimits
from tests.waiting import wait_for

MANY = 10**9


class Calls:
    """Calls of one actor: each is a thread that ends when the test lets its engine answer."""

    def __init__(self, limits: PartLimits, fails: bool = False) -> None:
        self.written: list[list[int]] = []
        self._fails = fails
        self.gathering = Gathering(self._write, limits)

    def _write(self, results: pa.Table) -> str:
        if self._fails:
            raise OSError("no space")
        self.written.append(results["row"].to_pylist())
        return f"part {len(self.written)}"

    def start(self, *rows: int, text: str = "") -> tuple[Future, threading.Event]:
        """A call; its engine answers when the event is set."""
        answer, working = threading.Event(), threading.Event()

        def work() -> pa.Table:
            working.set()
            answer.wait()
            return pa.table({"row": list(rows), "text": [text] * len(rows)})

        call: Future = Future()

        def run() -> None:
            try:
                call.set_result(self.gathering.run(work))
            except Exception as error:
                call.set_exception(error)

        threading.Thread(target=run, daemon=True).start()  # a test may leave it waiting
        working.wait()
        return call, answer


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No part closes by its age or because the engine is idle, unless a test wants it to."""
    monkeypatch.setattr(gathering, "_LEAST_S", 60.0)
    monkeypatch.setattr(gathering, "_IDLE_S", 60.0)


def test_a_part_closes_at_its_rows_and_every_call_returns_it():
    calls = Calls(PartLimits(rows=4, calls=MANY))
    started = [calls.start(0, 1), calls.start(2), calls.start(3, 4), calls.start(5)]
    for _, answer in started[:2]:
        answer.set()
    time.sleep(0.1)
    assert calls.written == [] and not any(call.done() for call, _ in started)
    started[2][1].set()
    assert {call.result(5) for call, _ in started[:3]} == {("part 1", 3)}
    assert sorted(calls.written[0]) == [0, 1, 2, 3, 4] and not started[3][0].done()


def test_a_part_closes_at_its_bytes():
    calls = Calls(PartLimits(rows=MANY, calls=MANY, bytes=1000))
    call, answer = calls.start(0, text="x" * 2000)
    answer.set()
    assert call.result(5) == ("part 1", 1)


def test_a_part_closes_when_so_many_calls_wait_that_the_engine_would_run_dry():
    calls = Calls(PartLimits(rows=MANY, calls=2))
    started = [calls.start(0), calls.start(1), calls.start(2)]
    for _, answer in started[:2]:
        answer.set()
    assert {call.result(5) for call, _ in started[:2]} == {("part 1", 2)}


def test_a_part_closes_after_a_share_of_the_time_so_far(monkeypatch):
    monkeypatch.setattr(gathering, "_LEAST_S", 0.3)
    calls = Calls(PartLimits(rows=MANY, calls=MANY))
    (call, answer), (other, _) = calls.start(0), calls.start(1)
    began = time.monotonic()
    answer.set()
    assert call.result(5) == ("part 1", 1)
    assert time.monotonic() - began >= 0.3 and not other.done()


def test_a_part_closes_when_the_engine_has_nothing_left(monkeypatch):
    monkeypatch.setattr(gathering, "_IDLE_S", 0.2)
    calls = Calls(PartLimits(rows=MANY, calls=MANY))
    (call, answer), (other, last) = calls.start(0), calls.start(1)
    answer.set()
    time.sleep(0.4)
    assert not call.done(), "another call is in the engine"
    last.set()
    assert {call.result(5), other.result(5)} == {("part 1", 2)}


def test_a_part_that_cannot_be_written_fails_all_its_calls():
    calls = Calls(PartLimits(rows=2, calls=MANY), fails=True)
    started = [calls.start(0), calls.start(1)]
    for _, answer in started:
        answer.set()
    for call, _ in started:
        with pytest.raises(OSError, match="no space"):
            call.result(5)


def test_a_call_that_fails_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(gathering, "_IDLE_S", 0.2)
    calls = Calls(PartLimits(rows=MANY, calls=MANY))
    call, answer = calls.start(0)

    def fails() -> pa.Table:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        calls.gathering.run(fails)
    answer.set()
    assert call.result(5) == ("part 1", 1)


def test_rows_of_many_calls_are_each_written_once(monkeypatch):
    monkeypatch.setattr(gathering, "_IDLE_S", 0.05)
    calls = Calls(PartLimits(rows=7, calls=4))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: calls.gathering.run(lambda: pa.table({"row": [row]})), range(200)))
    wait_for(lambda: sum(map(len, calls.written)) == 200, "all rows")
    assert sorted(row for part in calls.written for row in part) == list(range(200))
    for part, of in set(found):
        assert [name for name, _ in found].count(part) == of == len(calls.written[int(part.split()[1]) - 1])
