"""Quality by budget: the corpus's mean quality under a router's order, for every number of places.

It knows arrays, not routers' names.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from routelmt_batch.stats.measures import Floats, Ranking, routed_gains
from routelmt_batch.stats.selection import places

BUDGETS = tuple(Decimal(percent) / 100 for percent in range(101))


def budget_curve(base: Floats, router: Ranking) -> Floats:
    """Mean quality of the corpus with k places for the large model, k = 0 .. N: (N + 1,).

    `base` (N,) is the small model's quality. A guard chooses again for each k, so its curve is
    exact at each whole percent of N and linear in between.
    """
    rows = len(router.gain)
    if router.contenders is None:
        bought = np.append(0.0, np.cumsum(router.gain))
    else:
        known = sorted({places(budget, rows) for budget in BUDGETS})
        sums = [float(routed_gains(router, k).sum()) for k in known]
        bought = np.interp(np.arange(rows + 1), known, sums)
    return np.asarray(float(base.mean()) + bought / rows)


def by_percent(curve: Floats) -> dict[str, list[float]]:
    """A budget curve at each whole percent."""
    return {
        "budget": [float(budget) for budget in BUDGETS],
        "quality": [float(curve[places(budget, len(curve) - 1)]) for budget in BUDGETS],
    }


def area(curve: Floats) -> float:
    """Area under a budget curve over p = k / N from 0 to 1, by trapezoids over every k."""
    from scipy.integrate import trapezoid

    return float(trapezoid(curve, dx=1 / (len(curve) - 1)))
