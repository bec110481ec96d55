"""Regression measures against values computed by hand and by scipy's separate definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from routelmt_batch.learning.training.regression import calibration_error, measure, spearman


def test_measures_of_four_rows_by_hand():
    found = measure(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 6.0]))
    # residuals 0 1 -1 2; realised mean 3, squared deviations 4 0 1 9
    assert found.r2 == pytest.approx(1 - 6 / 14)
    assert found.mae == pytest.approx(1.0)
    assert found.pearson == pytest.approx(7 / math.sqrt(5 * 14))
    assert found.spearman == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found.expected_calibration_error == pytest.approx(1.0)  # a bin for each row
    assert found.rows == 4


def test_measures_agree_with_definitions_on_many_rows():
    draw = np.random.default_rng(3)
    predicted = draw.normal(size=1000).round(1)  # with ties
    realised = predicted + draw.normal(size=1000)
    found = measure(predicted, realised)
    assert found.r2 == pytest.approx(1 - np.mean((realised - predicted) ** 2) / np.var(realised))
    assert found.pearson == pytest.approx(np.corrcoef(predicted, realised)[0, 1])
    ranks = np.corrcoef(stats.rankdata(predicted), stats.rankdata(realised))[0, 1]
    assert found.spearman == pytest.approx(ranks)


def test_calibration_error_weighs_bins_by_their_rows():
    predicted = np.arange(25.0)
    realised = predicted + np.where(predicted < 9, 2.0, 0.0)
    # np.array_split: five bins of 3 rows, five of 2; the first three bins are off by 2
    assert calibration_error(predicted, realised, bins=10) == pytest.approx(9 * 2 / 25)
    assert calibration_error(predicted, predicted) == 0


def test_a_shift_that_evens_out_inside_a_bin_is_calibrated():
    predicted = np.repeat(np.arange(10.0), 2)
    assert calibration_error(predicted, predicted + np.tile([-3.0, 3.0], 10)) == pytest.approx(0)


def test_what_is_not_defined_is_none_without_a_warning():
    constant, other = np.ones(5), np.arange(5.0)
    assert math.isnan(spearman(constant, other))
    assert measure(other, constant).r2 is None
    assert measure(other, constant).mae == pytest.approx(1.4)
    assert measure(np.ones(1), np.ones(1)).pearson is None
    empty = measure(np.array([]), np.array([]))
    assert (empty.rows, *empty.values) == (0, None, None, None, None, None)
