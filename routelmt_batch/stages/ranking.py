"""Rows in the order in which a budget takes them, under floors and ceilings by direction.

A direction's first rows, up to its floor, are taken whatever the order; its rows behind its ceiling never.
The rows between contend with all others. So each direction has a cut of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from routelmt_batch import directions
from routelmt_batch.errors import UsageError
from routelmt_batch.spec.parts import Share
from routelmt_batch.stats.selection import Cut, GainOrder, Gains, Parts, Selected, admitted


@dataclass(frozen=True)
class Held:
    """A direction's rows with a gain, what they cost, and its first rows up to its floor and its ceiling."""

    rows: int
    cost: int
    floor: Selected
    ceiling: Selected

    @classmethod
    def of(cls, name: str, share: Share, parts: Parts, at_least: float | None) -> Held:
        """
        Raises:
            UsageError: no number of calls meets the floor and the ceiling, or too few rows have the value.
        """
        order = GainOrder(OfDirection(parts, directions.number(name)), at_least, in_rows=True)
        low, high = math.ceil(Fraction(share.min) * order.rows), math.floor(Fraction(share.max) * order.rows)
        if low > high:
            raise UsageError(
                f"budget.directions.{name}: of {order.rows:,} calls, min {share.min} is at least {low:,} and "
                f"max {share.max} at most {high:,}. Lower min or raise max"
            )
        if low > order.reached:
            raise UsageError(
                f"budget.directions.{name}: min {share.min} of {order.rows:,} calls is {low:,}, but only "
                f"{order.reached:,} reach the budget's lowest gain. Lower min, or the lowest gain"
            )
        return cls(order.rows, order.cost, *order.select([low, high]))

    def cut(self, common: Cut | None) -> Cut | None:
        """The direction's cut, given that of the rows that contend."""
        inside = min(common, self.ceiling.cut) if common and self.ceiling.cut else None
        return max((cut for cut in (self.floor.cut, inside) if cut), default=None)


@dataclass(frozen=True)
class OfDirection:
    """The gains of one direction alone. See selection.Parts."""

    parts: Parts
    direction: int

    def __call__(self, keys: bool = True, ranks: Collection[int] | None = None) -> Iterator[Gains]:
        for part in self.parts(keys, ranks):
            assert part.direction is not None
            yield part.only(part.direction == self.direction)


@dataclass(frozen=True)
class Contenders:
    """The gains of the rows that contend. See selection.Parts."""

    parts: Parts
    held: Mapping[str, Held]

    def __call__(self, keys: bool = True, ranks: Collection[int] | None = None) -> Iterator[Gains]:
        for part in self.parts(ranks=ranks):  # whether a row contends follows from its keys
            contends = np.ones(len(part.gain), bool)
            for name, held in self.held.items():
                between = admitted(held.ceiling.cut, part) & ~admitted(held.floor.cut, part)
                contends &= (part.direction != directions.number(name)) | between
            yield part.only(contends)


class Ranking:
    """All rows in order, without holding them. It reads the parts as GainOrder does, and twice more for each
    direction that is named.

    Args:
        shares: floors and ceilings by direction, as shares of its rows with a gain: at least ceil(min n) and
            at most floor(max n) of n rows are taken.
        at_least: no row with a lower value is taken.

    Attributes:
        rows, cost: of all rows with a gain.
        floors: the rows that are taken whatever the order. They have no cut.
        reached, worth: how many rows may be taken, and what they cost: the floors, and the rows that contend
            and have a value of `at_least`.

    Raises:
        UsageError: see Held.of.
    """

    def __init__(self, parts: Parts, shares: Mapping[str, Share], at_least: float | None = None) -> None:
        self._held = {name: Held.of(name, share, parts, at_least) for name, share in shares.items()}
        held = self._held.values()
        self._order = GainOrder(Contenders(parts, self._held) if self._held else parts, at_least)
        # What contends of a direction is counted with the order.
        self.rows = self._order.rows + sum(one.rows - one.ceiling.rows + one.floor.rows for one in held)
        self.cost = self._order.cost + sum(one.cost - one.ceiling.cost + one.floor.cost for one in held)
        self.floors = _sum([one.floor for one in held])
        self.reached = self.floors.rows + self._order.reached
        self.worth = self.floors.cost + self._order.reached_cost

    def select(self, amounts: Sequence[int]) -> list[Selected | None]:
        """For each amount, the rows that it buys: the floors, and the longest prefix of the rows that
        contend. Their cost is never over the amount. Their cut is the common one, for `cuts`. None: the
        floors cost more than the amount."""
        left = [amount - self.floors.cost for amount in amounts]
        bought = self._order.select([max(0, amount) for amount in left])
        return [
            None if amount < 0 else _sum([self.floors, rest])._replace(cut=rest.cut)
            for amount, rest in zip(left, bought, strict=True)
        ]

    def cuts(self, common: Cut | None) -> dict[str, Cut | None]:
        """The cut of each direction that is named, given the common one."""
        return {name: held.cut(common) for name, held in self._held.items()}

    def floors_in_words(self) -> str:
        return ", ".join(f"{name} {one.floor.rows:,}" for name, one in self._held.items() if one.floor.rows)


def _sum(parts: Sequence[Selected]) -> Selected:
    return Selected(
        None,
        sum(part.rows for part in parts),
        math.fsum(part.gain for part in parts),
        sum(part.weight for part in parts),
        sum(part.cost for part in parts),
    )
