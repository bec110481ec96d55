"""Thresholds: which rows reach them, and how far new traffic may lie from the wanted fraction."""

from decimal import Decimal

import numpy as np
import pytest

from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.learning.calibrate import thresholds


def test_a_threshold_is_reached_by_the_wanted_fraction_of_held_out_rows():
    scores = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    found = thresholds(scores, [Decimal("0.29"), Decimal("0.1"), Decimal("1")], 10_000)
    for fraction, k in (("0.29", 290), ("0.1", 100), ("1", 1000)):
        assert int((scores >= np.float32(found.thresholds[fraction].value)).sum()) == k
    assert found.quantiles[0] == scores.min() and found.quantiles[-1] == scores.max()


def test_the_interval_holds_95_percent_of_simulated_traffic():
    """Held-out rows and traffic are drawn anew 2,000 times; the realised fraction must fall inside."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        held_out = rng.normal(size=200).astype(np.float32)
        found = thresholds(held_out, [Decimal("0.3")], 500).thresholds["0.3"]
        realised = float((rng.normal(size=500) >= found.value).mean())
        inside += found.low <= realised <= found.high
    assert 0.935 <= inside / 2000 <= 0.975


def test_more_held_out_rows_make_the_interval_narrower():
    rng = np.random.default_rng(2)

    def width(rows: int) -> float:
        found = thresholds(rng.normal(size=rows).astype(np.float32), [Decimal("0.3")], 10**6)
        return found.thresholds["0.3"].high - found.thresholds["0.3"].low

    assert width(20_000) < width(2_000) / 2


def test_too_few_rows_or_too_small_a_fraction_are_told():
    with pytest.raises(InputError, match="19 rows with a score: a threshold needs 20"):
        thresholds(np.zeros(19, np.float32), [Decimal("0.3")], 100)
    with pytest.raises(UsageError, match="--fraction 0.01: less than one row of 50"):
        thresholds(np.zeros(50, np.float32), [Decimal("0.01")], 100)
