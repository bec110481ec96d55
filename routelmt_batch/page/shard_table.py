"""The page's table of shards: a short line of each, and which of them stand out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
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
# Of jobs whose shards differ by chance alone, one in twenty has a shard marked for its share.
_FALSE_ALARMS = 0.05
# Less is not far from the job's, however sure: a difference of shares, a multiple of the failures' rate.
_SHARE_APART, _FAILURES_TIMES = 0.05, 2.0
_MAD_TO_SD = 1.4826  # of a normal distribution


def lines(job: FinishedJob) -> list[dict[str, Any]]:
    """A line of each shard, in name order: counts and means as its report has them, and `marks`."""
    found = [_line(job.shard_report(name)) for name in job.shards]
    columns = {
        key: np.array([line[key] for line in found], np.int64)
        for key in ("tried", "failures", "gains", "large")
    }
    for line, marks in zip(found, stand_out(**columns), strict=True):
        line["marks"] = marks
    return found


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

    Share: how many standard errors a shard's share of rows to the large model lies from the job's, beyond
    what chance and the shards' usual spread explain (funnel limits with over-dispersion, Spiegelhalter 2005,
    Statistics in Medicine 24; the spread by the median, so that outliers do not hide themselves).
    Failures: more than chance puts into a shard of its size (exact binomial tail). Both limits are made
    wider for many shards (Bonferroni), and a difference must be large, too.

    Args:
        tried: (n,) rows that were not skipped.
        failures: (n,) of them, rows that a model failed on.
        gains: (n,) rows with a gain.
        large: (n,) of them, rows that the large model translated.
    """
    high, low = _far_shares(gains, large)
    marks = {SHARE_HIGH: high, SHARE_LOW: low, MANY_FAILURES: _many_failures(tried, failures)}
    return [[name for name, mask in marks.items() if mask[place]] for place in range(len(tried))]


def _far_shares(gains: Counts, large: Counts) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    some = gains > 0
    job = large.sum() / max(gains.sum(), 1)
    if not 0 < job < 1:
        return np.zeros(len(gains), bool), np.zeros(len(gains), bool)
    apart = np.where(some, large / np.maximum(gains, 1) - job, 0.0)
    errors = apart * np.sqrt(gains / (job * (1 - job)))
    spread = max(1.0, _MAD_TO_SD * float(np.median(np.abs(errors[some]))))
    limit = spread * NormalDist().inv_cdf(1 - _FALSE_ALARMS / 2 / int(some.sum()))
    far = (np.abs(errors) > limit) & (np.abs(apart) >= _SHARE_APART)
    return far & (apart > 0), far & (apart < 0)


def _many_failures(tried: Counts, failures: Counts) -> npt.NDArray[np.bool_]:
    from scipy.special import bdtrc

    some = tried > 0
    job = failures.sum() / max(tried.sum(), 1)
    by_chance = bdtrc(failures - 1, tried, job)  # of as many failures or more
    limit = _FALSE_ALARMS / max(some.sum(), 1)
    return np.asarray(some & (by_chance < limit) & (failures >= _FAILURES_TIMES * job * tried))


def by_reason(shards: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """The shard with the most rows of each reason, and how many it has."""
    most: dict[str, tuple[str, int]] = {}
    for line in shards:
        for reason, count in line["reasons"].items():
            if count > most.get(reason, ("", 0))[1]:
                most[reason] = (line["name"], count)
    return most
