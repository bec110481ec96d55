"""How far new rows may lie from a calibrated fraction, against scipy's beta-binomial."""

import time

import pytest
from scipy.stats import betabinom

from routelmt_batch.routers.calibration import HeldOut


@pytest.mark.parametrize("new_rows", [1, 50, 777, 20_000])
@pytest.mark.parametrize(("rows", "reached"), [(4528, 1358), (20, 1), (20, 20), (1000, 999)])
def test_the_interval_is_the_beta_binomials(rows, reached, new_rows):
    low, high = betabinom(new_rows, reached, rows - reached + 1).interval(0.95)
    assert HeldOut(rows, reached).interval(new_rows) == (low / new_rows, high / new_rows)


def test_a_billion_new_rows_cost_no_more_than_the_held_out_ones():
    started = time.monotonic()
    low, high = HeldOut(4528, 1358).interval(10**9)
    assert time.monotonic() - started < 2
    assert (low, high) == pytest.approx((0.2866, 0.3133), abs=1e-4)
