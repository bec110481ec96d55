"""The page's table of shards: one line for each, and which shards stand out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from routelmt_batch.rows import FAILED, FALLBACK, LARGE, QUARANTINED, SKIPPED, SMALL, STATUSES
from routelmt_batch.stages.finished import FinishedJob

Counts = npt.NDArray[np.int64]

# Statuses of rows that a model failed on.
FAILURES = (FAILED, QUARANTINED, FALLBACK)
# Why a shard stands out.
SHARE_HIGH, SHARE_LOW, MANY_FAILURES = "share high", "share low", "failures"
# A share stands out at this distance from the median shard's, with at least this many rows with a gain.
SHARE_APART, SHARE_ROWS = 0.10, 100
# Failures stand out at this multiple of the job's rate, with at least this many rows.
FAILURES_TIMES, FAILURES_ROWS = 2, 10


def lines(job: FinishedJob) -> list[dict[str, Any]]:
    """One line for each shard, in name order: counts and means from its report, and `marks`."""
    table = [_line(job.shard_report(name)) for name in job.shards]
    columns = {
        key: np.array([line[key] for line in table], np.int64)
        for key in ("tried", "failures", "gains", "large")
    }
    for line, marks in zip(table, stand_out(**columns), strict=True):
        line["marks"] = marks
    return table


def _line(report: Mapping[str, Any]) -> dict[str, Any]:
    status = {name: report["status"].get(name, 0) for name in STATUSES}
    return {
        "name": report["shard"],
        "rows": report["rows"],
        "gains": report["rows_with_gain"],
        "planned": report["planned_route"].get(LARGE, 0),
        "large": report["route"].get(LARGE, 0),
        "gain": report["gain"]["all"]["mean"],
        "gain_routed": report["gain"]["routed"]["mean"],
        "bought": report["predicted_gain_bought"],
        **status,
        "tried": report["rows"] - status[SKIPPED],
        "failures": sum(status[name] for name in FAILURES),
        "tokens": [report["tokens"][route][way] for route in (SMALL, LARGE) for way in ("in", "out")],
        "reasons": report["reason"],
        "directions": {
            name: [counts["rows"], counts["large"]] for name, counts in report["direction"].items()
        },
    }


def stand_out(tried: Counts, failures: Counts, gains: Counts, large: Counts) -> list[list[str]]:
    """Why each shard stands out; most do not.

    Args:
        tried: (n,) rows that were not skipped.
        failures: (n,) of them, rows that a model failed on.
        gains: (n,) rows with a gain.
        large: (n,) of them, rows that the large model translated.
    """
    shares = large / np.maximum(gains, 1)
    enough = gains >= SHARE_ROWS
    # Distance from the median, not from the job's share: one odd shard would make all others look odd.
    apart = shares - (np.median(shares[enough]) if enough.any() else 0.0)
    usual = tried * failures.sum() / max(tried.sum(), 1)  # failures at the job's rate
    marks = {
        SHARE_HIGH: enough & (apart >= SHARE_APART),
        SHARE_LOW: enough & (apart <= -SHARE_APART),
        MANY_FAILURES: (failures >= FAILURES_ROWS) & (failures >= FAILURES_TIMES * usual),
    }
    return [[name for name, mask in marks.items() if mask[place]] for place in range(len(tried))]


def by_reason(shards: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """The shard with the most rows of each reason, and how many it has."""
    most: dict[str, tuple[str, int]] = {}
    for line in shards:
        for reason, count in line["reasons"].items():
            if count > most.get(reason, ("", 0))[1]:
                most[reason] = (line["name"], count)
    return most
