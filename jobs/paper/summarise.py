"""Evaluations of several training seeds as one table, beside the paper's.

    python jobs/paper/summarise.py runs/paper/evaluation-*/evaluation.json

Means over directions (as in the paper), then mean and standard deviation over the files.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

METRICS = ("spearman", "hit_rate", "mean_delta")
# RouteLMT, arXiv 2604.22520: LMT-60-0.6B and 8B, XCOMET-XXL x100, p = 0.3.
PAPER = {
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
    names = list(dict.fromkeys([*PAPER, *(name for one in evaluations for name in one)]))
    print("| router | " + " | ".join(f"{metric} | paper" for metric in METRICS) + " |")
    print("| --- |" + " --- |" * 2 * len(METRICS))
    for name in names:
        found = [one[name]["macro"] for one in evaluations if name in one]
        if not found:
            continue
        paper = PAPER.get(name, (None,) * len(METRICS))
        cells = []
        for metric, theirs in zip(METRICS, paper, strict=True):
            cells += [
                cell([one[metric]["value"] for one in found]),
                "-" if theirs is None else f"{theirs:.2f}",
            ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
