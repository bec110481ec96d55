"""Selection is the first k of a full sort, whatever the gains and however the parts lie."""

import itertools
import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routelmt_batch.stats.selection import Cut, Cuts, GainOrder, Gains, order_key, places

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
                yield part if keys else replace(part, rank=none, row=none)


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


def costs_of(rows: list[tuple[float, int, int]], most: int) -> dict[tuple[int, int], int]:
    """A cost for each row, which does not follow from its gain."""
    return {(rank, row): 1 + hash((rank, row, most)) % most for _, rank, row in rows}


def costed(rows: list[tuple[float, int, int]], costs: dict[tuple[int, int], int], per_cost: bool) -> Gains:
    cost = np.array([costs[rank, row] for _, rank, row in rows], np.int64)
    return replace(gains(rows), cost=cost, per_cost=per_cost)


def bought(rows, costs, per_cost, amount):
    """The longest prefix of a full sort that costs at most an amount, its cost, and that of the next row."""
    numbers = [row for row in rows if not math.isnan(row[0])]

    def value(gain: float, rank: int, row: int) -> float:
        return float(np.float32(gain / costs[rank, row])) if per_cost else gain

    order = sorted(numbers, key=lambda row: (-value(*row) + 0.0, *row[1:]))
    spent, taken = 0, []
    for gain, rank, row in order:
        if spent + costs[rank, row] > amount:
            return taken, spent, costs[rank, row]
        spent += costs[rank, row]
        taken.append((gain, rank, row))
    return taken, spent, None


@pytest.mark.parametrize("most_rows", [0, 3, 1000])
@pytest.mark.parametrize("per_cost", [False, True])
@pytest.mark.parametrize("most", [1, 3, 2**40])
@settings(max_examples=20, deadline=None)  # each allocates the bins
@given(rows=ROWS, data=st.data())
def test_an_amount_buys_the_longest_prefix_that_it_covers(most_rows, per_cost, most, rows, data):
    rows = list({(rank, row): (gain, rank, row) for gain, rank, row in rows}.values())
    costs = costs_of(rows, most)
    order = data.draw(st.permutations(rows))
    middle = data.draw(st.integers(0, len(rows)))
    parts = Parts([costed(some, costs, per_cost) for some in (order[:middle], order[middle:])])
    ranking = GainOrder(parts, most_rows=most_rows)
    everything, total, _ = bought(rows, costs, per_cost, 10**18)
    assert (ranking.rows, ranking.cost) == (len(everything), total)
    ends = list(itertools.accumulate(costs[rank, row] for _, rank, row in everything))
    amounts = [0, 1, *(end + by for end in ends[:8] for by in (-1, 0, 1)), total, total + 7]
    for amount, first in zip(amounts, ranking.select(amounts), strict=True):
        taken, spent, more = bought(rows, costs, per_cost, amount)
        assert chosen(parts.parts, first.cut) == {(rank, row) for _, rank, row in taken}
        assert (first.rows, first.cost) == (len(taken), spent)
        assert first.weight == sum(weight(row) for *_, row in taken)
        assert spent <= amount and (more is None or spent + more > amount)
        finite = [gain for gain, *_ in taken if math.isfinite(gain)]
        assert first.gain == pytest.approx(
            math.fsum(finite), rel=1e-12, abs=1e-6 * max(map(abs, finite), default=0)
        )


@pytest.mark.parametrize("most_rows", [0, 1000])
@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, 3.5])
def test_rows_of_one_value_are_bought_by_shard_and_row(value, most_rows):
    """Rows 0 and 1 of shard 0 cost 3 and 4, its row 2 costs 5: 11 buy the first two, 12 all three."""
    rows = [(value, rank, row) for rank in (1, 0) for row in (2, 0, 1)]
    part = costed(rows, {(rank, row): 3 + row for _, rank, row in rows}, per_cost=False)
    order = GainOrder(Parts([part]), most_rows=most_rows)
    keys = [(0, 0), (0, 1), (0, 2), (1, 0)]
    amounts = {2: 0, 3: 1, 6: 1, 7: 2, 11: 2, 12: 3, 14: 3, 15: 4}
    for (amount, count), first in zip(amounts.items(), order.select(list(amounts)), strict=True):
        assert chosen([part], first.cut) == set(keys[:count]), amount


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, least=st.floats(-4, 4, width=32))
def test_rows_that_reach_a_gain_per_cost_are_counted_with_their_cost(rows, least):
    rows = list({(rank, row): (gain, rank, row) for gain, rank, row in rows}.values())
    costs = costs_of(rows, 5)
    ranking = GainOrder(Parts([costed(rows, costs, True)]), at_least=least)
    reached = [row for row in rows if np.float32(row[0] / costs[row[1:]]) >= least]
    assert ranking.reached == len(reached)
    assert ranking.reached_cost == sum(costs[row[1:]] for row in reached)


@pytest.mark.parametrize("most_rows", [0, 1000])
def test_rows_may_be_counted_although_they_have_costs(most_rows):
    rows = [(float(row), 0, row) for row in range(6)]
    part = costed(rows, {(0, row): 10 * (row + 1) for row in range(6)}, False)
    (first,) = GainOrder(Parts([part]), most_rows=most_rows, in_rows=True).select([2])
    assert (first.rows, first.cost) == (2, 50 + 60)


def test_each_direction_that_is_named_has_a_cut_of_its_own():
    rows = [(float(gain), 0, gain) for gain in range(6)]
    part = replace(gains(rows), direction=np.array([1, 2, 3, 1, 2, 3], np.int16))
    cuts = Cuts(Cut.at_least(3), {1: None, 2: Cut.at_least(0)})
    assert cuts.admits(part).tolist() == [False, True, False, False, True, True]


def test_costs_are_no_matter_of_the_order_of_the_parts():
    rows = [(float(gain), 0, row) for row, gain in enumerate(np.random.default_rng(5).standard_normal(3000))]
    costs = costs_of(rows, 2**44)
    parts = [costed([row], costs, True) for row in rows]
    found = [GainOrder(Parts(order)).select([sum(costs.values()) // 3]) for order in (parts, parts[::-1])]
    assert len({(first.cut, first.rows, first.cost) for (first,) in found}) == 1


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
