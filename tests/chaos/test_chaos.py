"""Some seeds of the random faults; `python -m tests.chaos` runs as many as you like."""

import pytest

from tests.chaos.__main__ import run_all
from tests.chaos.faults import drawn
from tests.chaos.kinds import DISK, KINDS, STORE

pytestmark = pytest.mark.slow


def test_ten_seeds_leave_the_result_of_a_clean_run():
    assert [found for found in run_all(range(10)) if "broken" in found] == []


@pytest.mark.chaos
@pytest.mark.parametrize("first", range(10, 200, 38))
def test_many_seeds_leave_the_result_of_a_clean_run(first):
    assert [found for found in run_all(range(first, first + 38)) if "broken" in found] == []


def test_a_seed_draws_the_same_faults_and_all_kinds_come_early():
    assert [drawn(seed) for seed in range(50)] == [drawn(seed) for seed in range(50)]
    first = [drawn(seed)[0].kind for seed in range(24)]
    assert set(first) == set(KINDS) and set(first[:10]) >= {*list(DISK)[:7], "store"}
    assert {drawn(seed)[0].kind for seed in range(7, 32, 8)} == set(STORE)
