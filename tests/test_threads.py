"""Threads end when their caller leaves."""

import threading
import time

import pytest

from routelmt_batch.errors import Interrupted
from routelmt_batch.threads import each


def test_results_come_in_order():
    with each(lambda item, stop: item * item, range(50)) as results:
        assert list(results) == [item * item for item in range(50)]


def test_a_caller_that_leaves_stops_what_runs_and_drops_the_rest():
    begun, before = [], threading.active_count()

    def work(item, stop):
        begun.append(item)
        while item:  # the first comes back at once, the others only when told to stop
            stop()
            time.sleep(0.01)
        return item

    def leave() -> None:
        with each(work, range(100)) as results:
            assert next(results) == 0
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        leave()
    assert len(begun) < 100
    assert threading.active_count() == before


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError), each(lambda item, stop: 1 / item, [1, 0]) as results:
        list(results)
