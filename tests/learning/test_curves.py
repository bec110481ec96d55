"""Budget curves against corpora routed row by row."""

import numpy as np
import pytest

from routelmt_batch.learning.evaluation.curves import area, budget_curve, by_percent
from routelmt_batch.stats import measures
from tests.stats.test_measures import guarded


def test_the_curve_is_mean_quality_with_the_first_k_rows_routed():
    small, gain = np.array([10.0, 20, 30]), np.array([6.0, 3, -3])
    population = measures.population(gain, np.arange(3))
    curve = budget_curve(small, measures.ranking(population, np.array([3.0, 2, 1])))
    assert curve.tolist() == pytest.approx([20, 22, 23, 22])
    assert area(curve) == pytest.approx((20 / 2 + 22 + 23 + 22 / 2) / 3)


@pytest.mark.parametrize("rows", [7, 250])
def test_a_guard_chooses_anew_at_each_budget(rows):
    generator = np.random.default_rng(rows)
    small, gain = generator.uniform(20, 90, rows), generator.normal(5, 10, rows)
    score, quality = gain + generator.normal(0, 9, rows), small + generator.normal(0, 9, rows)
    guard = measures.Guard(quality, 2.0)
    ranking = measures.ranking(measures.population(gain, np.arange(rows)), score, guard)
    curve = budget_curve(small, ranking)
    assert len(curve) == rows + 1
    for percent, found in enumerate(by_percent(curve)["quality"]):
        routed = guarded(score.tolist(), percent * rows // 100, guard)
        assert found == pytest.approx(small.mean() + gain[routed].sum() / rows)
