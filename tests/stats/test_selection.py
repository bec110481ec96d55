"""Selection is the first k of a full sort, whatever the gains and however the parts lie."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routelmt_batch.stats.selection import Cut, GainOrder, Gains, order_key, places

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
        np.array([weight(row) for _, _, row in rows], np.int64),
    )


def weight(row: int) -> int:
    return row % 7


class Parts:
    """Parts that count how often they are read, and leave out what a caller says it does not need."""

    def __init__(self, parts: list[Gains]) -> None:
        self.parts, self.reads = parts, 0

    def __call__(self, keys=True, ranks=None):
        self.reads += ranks is None
        for part in self.parts:
            if ranks is None or set(part.rank.tolist()) & set(ranks):
                none = np.zeros(0, np.int64)
                yield part if keys else Gains(part.gain, none, none, part.weight)


def sorted_top(rows: list[tuple[float, int, int]], k: int) -> list[tuple[float, int, int]]:
    return sorted((-gain + 0.0, rank, row) for gain, rank, row in rows if not math.isnan(gain))[:k]


def chosen(parts: list[Gains], cut: Cut | None) -> set[tuple[int, int]]:
    keys = set()
    for part in parts:
        mask = cut.admits(part) if cut else np.zeros(len(part.row), bool)
        keys |= set(zip(part.rank[mask].tolist(), part.row[mask].tolist(), strict=True))
    return keys


@pytest.mark.parametrize("most_rows", [0, 3, 1000])
@settings(max_examples=60, deadline=None)  # each allocates the bins
@given(rows=ROWS, data=st.data())
def test_every_k_is_the_top_of_a_full_sort(most_rows, rows, data):
    rows = list({(rank, row): (gain, rank, row) for gain, rank, row in rows}.values())
    order = data.draw(st.permutations(rows))
    marks = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    bounds = [0, *marks, len(rows)]
    parts = Parts([gains(order[a:b]) for a, b in itertools.pairwise(bounds)])
    ranking = GainOrder(parts, most_rows=most_rows)
    assert ranking.rows == ranking.reached == sum(not math.isnan(gain) for gain, _, _ in rows)
    wanted = list(range(ranking.rows + 1))
    for k, first in zip(wanted, ranking.select(wanted), strict=True):
        top = sorted_top(rows, k)
        assert chosen(parts.parts, first.cut) == {(rank, row) for _, rank, row in top}
        assert (first.rows, first.weight) == (k, sum(weight(row) for *_, row in top))
        finite = [-gain for gain, *_ in top if math.isfinite(gain)]
        assert first.gain == pytest.approx(
            math.fsum(finite), rel=1e-12, abs=1e-6 * max(map(abs, finite), default=0)
        )
        assert first.threshold == (-top[-1][0] if top else None)
    assert parts.reads <= 2


@pytest.mark.parametrize("most_rows", [0, 1000])
@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, 3.5])
def test_all_equal_gains_go_by_shard_and_row(value, most_rows):
    rows = [(value, rank, row) for rank in (1, 0) for row in (2, 0, 1)]
    (first,) = GainOrder(Parts([gains(rows)]), most_rows=most_rows).select([4])
    assert chosen([gains(rows)], first.cut) == {(0, 0), (0, 1), (0, 2), (1, 0)}


@settings(max_examples=100, deadline=None)
@given(ROWS, GAINS.filter(lambda value: not math.isnan(value)))
def test_rows_that_reach_a_gain_are_counted(rows, value):
    ranking = GainOrder(Parts([gains(rows)]), at_least=value)
    assert ranking.reached == sum(gain >= value for gain, _, _ in rows)


def test_no_sum_depends_on_the_order_of_the_parts():
    values = np.random.default_rng(3).standard_normal(5000).astype(np.float32) * np.float32(1e4)
    parts = [gains([(float(gain), 0, row)]) for row, gain in enumerate(values)]
    sums = {GainOrder(Parts(list(order))).select([3000])[0].gain for order in (parts, parts[::-1])}
    assert len(sums) == 1


def test_zero_and_minus_zero_are_one_gain():
    keys = order_key(np.array([0.0, -0.0], np.float32))
    assert keys[0] == keys[1]


def test_keys_order_as_floats_do():
    values = np.sort(np.random.default_rng(7).standard_normal(10_000).astype(np.float32) * 1e3)
    assert (np.diff(order_key(values).astype(np.int64)) <= 0).all()


def test_one_row_and_no_row():
    cuts = [first.cut for first in GainOrder(Parts([gains([(5.0, 0, 9)])])).select([0, 1])]
    assert cuts == [None, Cut(int(order_key(np.array([5.0], np.float32))[0]), 0, 9)]
    assert GainOrder(Parts([])).select([0])[0].cut is None


def test_the_cut_tells_the_threshold():
    rows = [(gain, 0, row) for row, gain in enumerate([0.5, -2.25, 8.0, -0.0])]
    found = GainOrder(Parts([gains(rows)])).select([1, 2, 3, 4])
    assert [first.threshold for first in found] == [8.0, 0.5, 0.0, -2.25]


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
