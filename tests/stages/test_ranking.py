"""Floors and ceilings by direction, against a brute force over all rows."""

import math
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from routelmt_batch.directions import number
from routelmt_batch.errors import UsageError
from routelmt_batch.spec.parts import Share
from routelmt_batch.stages.ranking import Ranking
from routelmt_batch.stats.selection import Cuts, Gains

DIRECTIONS = ("en-de", "en-zh", "de-en")
GAINS = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf, -math.inf, math.nan])
ROWS = st.lists(st.tuples(GAINS, st.sampled_from(DIRECTIONS), st.integers(1, 9)), max_size=40)
SHARES = st.sampled_from(["0", "0.1", "0.25", "0.5", "0.75", "1"]).map(Decimal)
BOUNDS = st.dictionaries(st.sampled_from(DIRECTIONS[:2]), st.tuples(SHARES, SHARES), max_size=2)
Row = tuple[float, str, int]


class Parts:
    """Each row is in the shard of its index's remainder by 3. Parts come from the last row to the first."""

    def __init__(self, rows: list[Row], costs: bool) -> None:
        self.gains = [self._part([(i, *row)], costs) for i, row in enumerate(rows)][::-1]

    def _part(self, rows: list[tuple[int, float, str, int]], costs: bool) -> Gains:
        index = np.array([row[0] for row in rows])
        part = Gains(
            np.array([row[1] for row in rows], np.float32),
            index % 3,
            index,
            direction=np.array([number(row[2]) for row in rows], np.int16),
        )
        cost = np.array([row[3] for row in rows], np.int64)
        return replace(part, cost=cost, per_cost=True) if costs else part

    def __call__(self, keys=True, ranks=None):
        for part in self.gains:
            if ranks is None or set(part.rank.tolist()) & set(ranks):
                yield part


def ordered(rows: list[Row], costs: bool) -> list[int]:
    """Indices of the rows with a gain, the first to be taken first."""
    value = {i: float(np.float32(gain / cost)) if costs else gain for i, (gain, _, cost) in enumerate(rows)}
    return sorted((i for i in value if not math.isnan(value[i])), key=lambda i: (-value[i] + 0.0, i % 3, i))


def limits(rows: list[Row], shares: dict[str, Share]) -> dict[str, tuple[int, int]]:
    """The fewest and the most calls of each direction that is named."""
    count = Counter(name for gain, name, _ in rows if not math.isnan(gain))
    return {
        name: (math.ceil(Fraction(share.min) * count[name]), math.floor(Fraction(share.max) * count[name]))
        for name, share in shares.items()
    }


def brute_force(rows: list[Row], shares: dict[str, Share], amount: int, costs: bool) -> set[int] | None:
    """The rows to take; None if the floors cost more than the amount."""
    bounds, order = limits(rows, shares), ordered(rows, costs)
    seen: Counter[str] = Counter()
    floors, contend = [], []
    for i in order:
        name = rows[i][1]
        low, high = bounds.get(name, (0, len(rows)))
        seen[name] += 1
        if seen[name] <= low:
            floors.append(i)
        elif seen[name] <= high:
            contend.append(i)
    price = {i: rows[i][2] if costs else 1 for i in order}
    left = amount - sum(price[i] for i in floors)
    if left < 0:
        return None
    taken = set(floors)
    for i in contend:
        left -= price[i]
        if left < 0:
            break
        taken.add(i)
    return taken


def taken_by(parts: Parts, cuts: Cuts) -> set[int]:
    return {int(part.row[0]) for part in parts.gains if cuts.admits(part)[0]}


@pytest.mark.parametrize("costs", [False, True])
@settings(max_examples=60, deadline=None)  # each allocates the bins
@given(rows=ROWS, bounds=BOUNDS)
def test_floors_and_ceilings_are_met_and_the_rest_goes_by_the_common_order(costs, rows, bounds):
    shares = {name: Share(min=min(pair), max=max(pair)) for name, pair in bounds.items()}
    found = limits(rows, shares)
    assume(all(low <= high for low, high in found.values()))
    parts = Parts(rows, costs)
    ranking = Ranking(parts, shares)
    with_gain = ordered(rows, costs)
    total = sum(rows[i][2] if costs else 1 for i in with_gain)
    assert (ranking.rows, ranking.cost) == (len(with_gain), total)
    amounts = sorted({0, 1, total // 4, total // 2, total - 1, total} - {-1})
    for amount, selected in zip(amounts, ranking.select(amounts), strict=True):
        wanted = brute_force(rows, shares, amount, costs)
        if wanted is None:
            assert selected is None
            continue
        cuts = Cuts(selected.cut, {number(name): cut for name, cut in ranking.cuts(selected.cut).items()})
        assert taken_by(parts, cuts) == wanted
        assert selected.rows == len(wanted)
        assert selected.cost == sum(rows[i][2] if costs else 1 for i in wanted) <= amount
        finite = [rows[i][0] for i in wanted if math.isfinite(rows[i][0])]
        assert selected.gain == pytest.approx(math.fsum(finite))


def rows_of(name: str, count: int) -> list[Row]:
    return [(float(gain), name, 1) for gain in range(count)]


@pytest.mark.parametrize(
    ("share", "taken"),
    [
        (Share(min=Decimal("0.25"), max=Decimal(1)), 3),  # ceil(0.25 x 9)
        (Share(min=Decimal(0), max=Decimal("0.25")), 2),  # floor(0.25 x 9)
        (Share(min=Decimal(1), max=Decimal(1)), 9),
        (Share(min=Decimal(0), max=Decimal(0)), 0),
    ],
)
def test_shares_at_their_bounds(share, taken):
    """The direction's gains are above all others where there is a ceiling, and below where there is a floor."""
    shift = -100.0 if share.min else 100.0
    rows = [(gain + shift, name, 1) for gain, name, _ in rows_of("en-de", 9)] + rows_of("de-en", 20)
    parts = Parts(rows, costs=False)
    ranking = Ranking(parts, {"en-de": share})
    (selected,) = ranking.select([15])
    cuts = Cuts(selected.cut, {number("en-de"): ranking.cuts(selected.cut)["en-de"]})
    found = Counter(rows[i][1] for i in taken_by(parts, cuts))
    assert (found["en-de"], found.total()) == (taken, 15)


def test_bounds_between_which_no_number_of_calls_lies_are_refused_with_the_numbers():
    half = {"en-de": Share(min=Decimal("0.5"), max=Decimal("0.5"))}
    with pytest.raises(UsageError, match=r"en-de: of 3 calls, min 0.5 is at least 2 and max 0.5 at most 1"):
        Ranking(Parts(rows_of("en-de", 3), costs=False), half)
    assert Ranking(Parts(rows_of("en-de", 4), costs=False), half).floors.rows == 2


def test_a_floor_that_too_few_rows_reach_is_refused():
    parts, floor = Parts(rows_of("en-de", 8), costs=False), {"en-de": Share(min=Decimal("0.5"))}
    with pytest.raises(UsageError, match=r"min 0.5 of 8 calls is 4, but only 3 reach"):
        Ranking(parts, floor, at_least=5)
    assert Ranking(parts, floor, at_least=4).reached == 4
