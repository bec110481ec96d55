"""Estimates from held-out rows how many new rows reach a threshold.

Of M new rows like the n held-out ones, the number that scores at least the k-th highest held-out score is
beta-binomial (M, k, n - k + 1) (David and Nagaraja, Order Statistics, 3rd ed., section 7.3; exact for
scores without ties).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_TAIL = 0.025  # on either side: 95%


@dataclass(frozen=True)
class HeldOut:
    """The number of held-out rows with a score, and how many of them (at least one) reach a threshold."""

    rows: int
    reached: int

    def interval(self, new_rows: int) -> tuple[float, float]:
        """The 95% interval of the fraction of `new_rows` (at least one) that reach it, ties included."""
        from scipy.stats import hypergeom

        # scipy's beta-binomial sums over the new rows, which may be a billion. At most x of them reach the
        # threshold exactly if the highest k + x of all M + n rows include k held-out ones: a hypergeometric
        # tail, which sums over no more than the held-out rows.
        def at_most(x: int) -> float:
            both = self.rows + new_rows
            return 1 - float(hypergeom.cdf(self.reached - 1, both, self.rows, self.reached + x))

        low, high = (bisect_left(range(new_rows + 1), tail, key=at_most) for tail in (_TAIL, 1 - _TAIL))
        return low / new_rows, high / new_rows
