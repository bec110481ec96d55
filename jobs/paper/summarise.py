"""Evaluations of several training seeds as two tables, beside the paper's: routers, and guards.

    python jobs/paper/summarise.py runs/paper/evaluation-*/evaluation.json

Means over directions (as in the paper), then mean and standard deviation over the files.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# RouteLMT, arXiv 2604.22520: LMT-60-0.6B and 8B, XCOMET-XXL x100, p = 0.3.
ROUTER_METRICS = ("spearman", "hit_rate", "mean_delta")
ROUTERS = {
    "oracle-gain": (1.00, 100.00, 19.48),
    "oracle-quality": (0.67, 75.10, 16.73),
    "random": (0.00, 30.00, 5.83),
    "length": (0.24, 46.39, 9.35),
    "entropy": (0.09, 37.25, 7.45),
    "sentinel": (0.34, 55.00, 11.27),
    "xlmr-delta": (0.32, 53.59, 11.02),
    "routelmt-q": (0.37, 56.04, 11.77),
    "routelmt": (0.40, 57.33, 12.13),
}
GUARD_METRICS = ("severe_loss_rate", "mean_delta")
# "Gain + Quality hypo" is the quality oracle's number, so `upper`, which sees references, stands beside it.
GUARDS = {
    "random": (7.10, 5.83),
    "routelmt": (8.19, 12.13),
    "predicted": (8.19, 12.24),
    "upper": (5.69, 16.73),
    "free": None,
    "verified": None,
}


def cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    evaluations = [json.loads(Path(path).read_text(encoding="utf8"))["routers"] for path in sys.argv[1:]]
    others = {name: None for one in evaluations for name in one if name not in ROUTERS | GUARDS}
    print_table(evaluations, ROUTER_METRICS, ROUTERS | others)
    print()
    print_table(evaluations, GUARD_METRICS, GUARDS)


def print_table(
    evaluations: list[dict[str, Any]],
    metrics: tuple[str, ...],
    paper: Mapping[str, tuple[float, ...] | None],
) -> None:
    """The routers of `paper` that were evaluated."""
    print("| router | " + " | ".join(f"{metric} | paper" for metric in metrics) + " |")
    print("| --- |" + " --- |" * 2 * len(metrics))
    for name, theirs in paper.items():
        found = [one[name]["macro"] for one in evaluations if name in one]
        if not found:
            continue
        cells = []
        for at, metric in enumerate(metrics):
            cells += [
                cell([one[metric]["value"] for one in found]),
                f"{theirs[at]:.2f}" if theirs else "-",
            ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
