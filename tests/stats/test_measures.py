"""Measures against full sorts of Python lists, scipy, and rows that are really repeated."""

import itertools
import math
import warnings
from decimal import Decimal
from fractions import Fraction
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from routelmt_batch.stats import measures, resampling
from routelmt_batch.stats.measures import METRICS

GAINS = st.one_of(
    st.sampled_from([0.0, -0.0, -5.0, 5.0, 1.0]), st.floats(-100, 100).map(lambda gain: round(gain, 3))
)
SCORES = st.one_of(GAINS, st.sampled_from([math.nan, math.inf, -math.inf]))
ROWS = st.lists(st.tuples(GAINS, SCORES, st.integers(0, 4)), min_size=1, max_size=40)
FRACTIONS = st.sampled_from(["0", "0.01", "0.29", "0.3", "0.5", "0.99", "1"]).map(Decimal)
SEVERE = -5.0


def guarded(score: list[float], k: int, guard: measures.Guard) -> list[int]:
    """The rows that a guard lets through to k places, from sorted lists of rows."""
    rows = [row for row in range(len(score)) if not math.isnan(score[row])]
    candidates = sorted(rows, key=lambda row: (-score[row], row))[: int(guard.candidates * k)]
    quality = guard.quality.tolist()
    if guard.keep_small_above is not None:
        return [row for row in candidates if not quality[row] > guard.keep_small_above][:k]
    unknown = [row for row in candidates if math.isnan(quality[row])]
    known = [row for row in candidates if not math.isnan(quality[row])]
    return [*unknown, *sorted(known, key=lambda row: quality[row])][:k]


def by_definition(
    gain: list[float],
    score: list[float],
    fraction: Decimal,
    guard: measures.Guard | None = None,
    brings: list[float] | None = None,
) -> dict[str, float]:
    """The metrics, from sorted lists of rows and scipy."""
    brings = gain if brings is None else brings
    rows = range(len(gain))
    k = math.floor(Fraction(fraction) * len(gain))
    best = sorted(rows, key=lambda row: (-gain[row], row))[:k]
    scored = [row for row in rows if not math.isnan(score[row])]
    without = [row for row in rows if math.isnan(score[row])]
    routed = [*sorted(scored, key=lambda row: (-score[row], row)), *without][:k]
    if guard:
        routed = guarded(score, k, guard)
    values = dict.fromkeys(METRICS, math.nan)
    if len({gain[row] for row in scored}) > 1 and len({score[row] for row in scored}) > 1:
        values["spearman"] = stats.spearmanr([gain[r] for r in scored], [score[r] for r in scored]).statistic
    if k:
        values["hit_rate"] = 100 * len({*routed} & {*best}) / k
        values["mean_delta"] = math.fsum(brings[row] for row in routed) / k
        oracle = fmean(gain[row] for row in best)
        # The sum of floats that cancel decides by rounding; leave those to nobody.
        if oracle > 1e-9:
            values["oracle_share"] = 100 * values["mean_delta"] / oracle
        values["severe_loss_rate"] = 100 * sum(brings[row] <= SEVERE for row in routed) / k
    return values


def weighted(gain, score, counts, fraction, guard=None, brings=None) -> dict[str, float]:
    population = measures.population(np.array(gain, float), np.arange(len(gain)))
    brings = None if brings is None else np.array(brings, float)
    ranking = measures.ranking(population, np.array(score, float), guard, brings)
    values = measures.measure(population, [ranking], np.array(counts, np.uint8), fraction, SEVERE)[0]
    return dict(zip(METRICS, values.tolist(), strict=True))


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    for metric in METRICS:
        if metric == "oracle_share" and math.isnan(expected[metric]):
            continue
        assert found[metric] == pytest.approx(expected[metric], rel=1e-9, abs=1e-9, nan_ok=True), metric


@settings(max_examples=300, deadline=None)
@given(ROWS, FRACTIONS)
def test_counting_rows_is_repeating_them(rows, fraction):
    gain, score, counts = map(list, zip(*rows, strict=True))
    repeated = [(g, s) for g, s, count in rows for _ in range(count)]
    expected = by_definition([g for g, _ in repeated], [s for _, s in repeated], fraction)
    assert_same(weighted(gain, score, counts, fraction), expected)


@settings(max_examples=200, deadline=None)
@given(ROWS, FRACTIONS)
def test_metrics_of_plain_rows_are_those_of_a_full_sort(rows, fraction):
    gain, score, _ = map(list, zip(*rows, strict=True))
    assert_same(weighted(gain, score, [1] * len(rows), fraction), by_definition(gain, score, fraction))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(GAINS, SCORES, st.integers(0, 4), SCORES, GAINS), min_size=1, max_size=40),
    FRACTIONS,
    st.sampled_from([1.0, 1.5, 2.0, 100.0]),
    st.sampled_from([None, -5.0, 0.0, 50.0]),
    st.booleans(),
)
def test_a_guard_chooses_what_it_would_of_rows_repeated(rows, fraction, candidates, above, verified):
    gain, score, counts, quality, brings = map(list, zip(*rows, strict=True))
    brings = brings if verified else gain
    at = [row for row, count in enumerate(counts) for _ in range(count)]
    guard, repeated = (
        measures.Guard(np.array(values, float), candidates, above)
        for values in (quality, [quality[row] for row in at])
    )
    columns = ([values[row] for row in at] for values in (gain, score))
    expected = by_definition(*columns, fraction, repeated, [brings[row] for row in at])
    assert_same(weighted(gain, score, counts, fraction, guard, brings), expected)


@pytest.mark.parametrize("tied", [1, 7, 1000])
def test_spearman_is_scipys_on_many_rows(tied):
    generator = np.random.default_rng(tied)
    gain = np.round(generator.normal(0, 10, 5000), 1)
    score = np.floor(gain + generator.normal(0, 30, 5000)) // tied
    found = weighted(gain, score, np.ones(5000), Decimal("0.3"))["spearman"]
    expected = stats.spearmanr(gain, score).statistic if len(set(score)) > 1 else math.nan
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_minus_zero_ties_with_zero_and_goes_by_row():
    assert measures.order(np.array([-0.0, 0.0, -0.0, 1.0, math.nan])).tolist() == [3, 0, 1, 2, 4]


def test_rows_without_a_score_come_last_in_row_order():
    scores = np.array([math.nan, -math.inf, math.nan, 2.0])
    assert measures.order(scores).tolist() == [3, 1, 0, 2]


def test_k_is_a_floor_in_decimal_arithmetic():
    gain = list(range(100, 0, -1))
    found = weighted(gain, gain, [1] * 100, Decimal("0.29"))
    assert found["mean_delta"] == fmean(gain[:29])


def test_equal_gains_or_scores_leave_spearman_undefined():
    assert math.isnan(weighted([1, 1, 1], [1, 2, 3], [1] * 3, Decimal(1))["spearman"])
    assert math.isnan(weighted([1, 2, 3], [1, 1, 1], [1] * 3, Decimal(1))["spearman"])


def test_gains_that_differ_by_rounding_alone_are_equal():
    small = np.random.default_rng(0).uniform(20, 80, 300)
    gain = (small + 3) - small
    assert len(set(gain)) > 1  # what floats make of it
    assert math.isnan(weighted(gain, gain, [1] * 300, Decimal("0.3"))["spearman"])
    assert measures.is_constant(gain) and not measures.is_constant(np.array([1.0, 1.00001]))


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([1, 1, 1], False),
        ([1, 1, math.nan], False),
        ([math.nan] * 3, False),
        ([1, 1, 2], True),
        ([1, 1, 2, 2], True),
        ([1, math.nan], True),
    ],
)
def test_equal_scores_rank_nothing(scores, ranks):
    population = measures.population(np.arange(float(len(scores))), np.arange(len(scores)))
    assert measures.ranking(population, np.array(scores, float)).ranks == ranks


def test_the_oracles_share_is_undefined_if_the_oracle_loses():
    assert math.isnan(weighted([-1, -2], [1, 2], [1, 1], Decimal(1))["oracle_share"])


@given(st.lists(GAINS, min_size=1, max_size=30))
def test_buckets_are_closed_on_the_right_and_hold_every_row(gains):
    counts = measures.bucket_counts(np.array(gains), SEVERE)
    bounds = [-math.inf, -20, -5, 0, 5, 20, math.inf]
    expected = [sum(a < gain <= b for gain in gains) for a, b in itertools.pairwise(bounds)]
    assert counts == expected


def test_a_resample_draws_as_many_rows_as_there_are():
    counts = resampling.resample(1000, np.random.default_rng(0))
    assert counts.sum() == 1000 and len(counts) == 1000
    assert abs((counts == 0).mean() - math.exp(-1)) < 0.05


def test_resamples_are_the_same_whatever_the_threads(monkeypatch):
    def measured(counts):
        return np.array([float(counts @ np.arange(50))])

    one = resampling.bootstrap(50, measured, 20, seed=3)
    monkeypatch.setattr(resampling, "_THREADS", 1)
    assert np.array_equal(one, resampling.bootstrap(50, measured, 20, seed=3))
    assert not np.array_equal(one, resampling.bootstrap(50, measured, 20, seed=4))


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).normal(0, 1, 400)
    samples = resampling.bootstrap(400, lambda counts: np.array(counts @ values / 400), 1000, seed=0)
    reference = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=1)
    assert resampling.interval(samples) == pytest.approx(tuple(reference.confidence_interval), abs=0.02)


def test_an_interval_leaves_out_what_is_undefined_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resampling.interval(np.array([math.nan, 1.0, 1.0])) == (1.0, 1.0)
        assert resampling.interval(np.array([math.nan])) == (None, None)


def test_p_is_small_for_a_difference_that_never_changes_sign_and_1_for_none():
    assert resampling.compare(np.full(199, 2.0)).p_value == pytest.approx(2 / 200)
    assert resampling.compare(np.zeros(199)).p_value == 1
    assert resampling.compare(np.tile([-1.0, 1.0], 100)).p_value == 1


@pytest.mark.parametrize(("rows", "resamples"), [(2, 1000), (150_000, 1000), (1_000_000, 150), (10**7, 100)])
def test_many_rows_are_resampled_less_often(rows, resamples):
    assert resampling.default_resamples(rows) == resamples
