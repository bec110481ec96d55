"""A split that keeps equal sentences together and moves no row when others come."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from routelmt_batch.learning.training.split import SIDES, sides

TENTH = Decimal("0.1")


@given(st.lists(st.text(max_size=3), max_size=50), st.integers(0, 5))
def test_equal_values_are_on_one_side(values, seed):
    found: dict[str, set[str]] = {}
    for value, one in zip(values, sides(values, seed, TENTH, TENTH), strict=True):
        found.setdefault(value, set()).add(one)
    assert all(len(several) == 1 for several in found.values())


def test_more_rows_move_none_and_no_order_does():
    values = [f"sentence {n}" for n in range(500)]
    before = dict(zip(values[:300], sides(values[:300], 0, TENTH, TENTH), strict=True))
    after = dict(zip(reversed(values), sides(list(reversed(values)), 0, TENTH, TENTH), strict=True))
    assert all(after[value] == one for value, one in before.items())


def test_a_larger_validation_side_leaves_the_test_side_as_it_is():
    values = [f"sentence {n}" for n in range(500)]
    some, more = sides(values, 0, TENTH, TENTH), sides(values, 0, Decimal("0.3"), TENTH)
    assert [one == "test" for one in some] == [one == "test" for one in more]


def test_the_fractions_are_met():
    drawn = sides([str(n) for n in range(20_000)], 1, Decimal("0.05"), Decimal("0.2"))
    shares = {side: drawn.count(side) / len(drawn) for side in SIDES}
    # four standard errors
    assert abs(shares["test"] - 0.2) < 0.012
    assert abs(shares["validation"] - 0.05) < 0.007


def test_another_seed_is_another_split():
    values = [str(n) for n in range(1000)]
    assert sides(values, 0, TENTH, TENTH) != sides(values, 1, TENTH, TENTH)
