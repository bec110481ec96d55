"""Selection is the first k of a full sort, whatever the gains and however the parts lie."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routelmt_batch.stats.selection import Cut, Gains, count, cuts, order_key, places

GAINS = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]),
)
ROWS = st.lists(st.tuples(GAINS, st.integers(0, 3), st.integers(0, 2**40)), max_size=60)


def gains(rows: list[tuple[float, int, int]]) -> Gains:
    return Gains(
        np.array([gain for gain, _, _ in rows], np.float32),
        np.array([rank for _, rank, _ in rows], np.int64),
        np.array([row for _, _, row in rows], np.int64),
    )


def sorted_top(rows: list[tuple[float, int, int]], k: int) -> set[tuple[int, int]]:
    ranked = sorted((-gain + 0.0, rank, row) for gain, rank, row in rows if not math.isnan(gain))
    return {(rank, row) for _, rank, row in ranked[:k]}


def chosen(parts: list[Gains], cut: Cut | None) -> set[tuple[int, int]]:
    keys = set()
    for part in parts:
        mask = cut.admits(part) if cut else np.zeros(len(part.row), bool)
        keys |= set(zip(part.rank[mask].tolist(), part.row[mask].tolist(), strict=True))
    return keys


@settings(max_examples=300, deadline=None)
@given(ROWS, st.data())
def test_every_k_is_the_top_of_a_full_sort(rows, data):
    rows = list({(rank, row): (gain, rank, row) for gain, rank, row in rows}.values())
    order = data.draw(st.permutations(rows))
    marks = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    bounds = [0, *marks, len(rows)]
    parts = [gains(order[a:b]) for a, b in itertools.pairwise(bounds)]
    total = sum(not math.isnan(gain) for gain, _, _ in rows)
    assert count(parts) == total
    wanted = list(range(total + 1))
    for k, cut in zip(wanted, cuts(lambda: parts, wanted, 4), strict=True):
        assert chosen(parts, cut) == sorted_top(rows, k)


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, 3.5])
def test_all_equal_gains_go_by_shard_and_row(value):
    rows = [(value, rank, row) for rank in (1, 0) for row in (2, 0, 1)]
    (cut,) = cuts(lambda: [gains(rows)], [4], 2)
    assert chosen([gains(rows)], cut) == {(0, 0), (0, 1), (0, 2), (1, 0)}


def test_zero_and_minus_zero_are_one_gain():
    keys = order_key(np.array([0.0, -0.0], np.float32))
    assert keys[0] == keys[1]


def test_keys_order_as_floats_do():
    values = np.sort(np.random.default_rng(7).standard_normal(10_000).astype(np.float32) * 1e3)
    assert (np.diff(order_key(values).astype(np.int64)) <= 0).all()


def test_one_row_and_no_row():
    assert cuts(lambda: [gains([(5.0, 0, 9)])], [0, 1], 1) == [
        None,
        Cut(int(order_key(np.array([5.0], np.float32))[0]), 0, 9),
    ]
    assert cuts(list, [0], 0) == [None]


def test_the_cut_tells_the_threshold():
    rows = [(gain, 0, row) for row, gain in enumerate([0.5, -2.25, 8.0, -0.0])]
    assert [cut.gain for cut in cuts(lambda: [gains(rows)], [1, 2, 3, 4], 1)] == [8.0, 0.5, 0.0, -2.25]


@pytest.mark.parametrize(
    ("fraction", "rows", "expected"),
    [
        ("0.29", 100, 29),
        ("0.3", 10, 3),
        ("0", 7, 0),
        ("1", 7, 7),
        ("0.1", 3, 0),
        ("0.3333", 3, 0),
        ("0.5", 1, 0),
    ],
)
def test_places_are_a_floor_in_decimals(fraction, rows, expected):
    assert places(Decimal(fraction), rows) == expected


@pytest.mark.parametrize("rows", [1, 3, 7, 49, 1000])
def test_one_nth_of_n_rows(rows):
    assert places(Decimal(1) / rows, rows) in (0, 1)
    assert places(Decimal("1e-9"), rows) == 0
