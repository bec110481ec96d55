"""What held-out rows that reach a threshold say of new rows: how many of those will.

Of M new rows like the n held-out ones, the number that scores at least the k-th highest of these is
beta-binomial (M, k, n - k + 1) (David and Nagaraja, Order Statistics, 3rd ed., section 7.3; exact for
scores without ties).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_TAIL = 0.025  # on either side: 95%


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows with a score, and how many of them, one at least, reach a threshold."""

    rows: int
    reached: int

    def interval(self, new_rows: int) -> tuple[float, float]:
        """The fractions between which that of `new_rows` (one at least) lies, 95%; ties count as reached."""
        from scipy.stats import hypergeom

        # scipy's beta-binomial sums over the new rows, a billion perhaps. At most x of them reach the
        # threshold exactly if the highest k + x of all M + n rows hold k held-out ones: a hypergeometric
        # tail, which sums over the held-out rows at most.
        def at_most(x: int) -> float:
            both = self.rows + new_rows
            return 1 - float(hypergeom.cdf(self.reached - 1, both, self.rows, self.reached + x))

        low, high = (bisect_left(range(new_rows + 1), tail, key=at_most) for tail in (_TAIL, 1 - _TAIL))
        return low / new_rows, high / new_rows
