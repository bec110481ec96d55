"""Compares two finished jobs: shares, score drift, failures, and rows routed differently.

Both are streamed shard by shard; memory holds one batch of each and the rows shown.
"""

from __future__ import annotations

import heapq
import math
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.units import languages
from routelmt_batch.files.write import plain
from routelmt_batch.page.excerpts import clip
from routelmt_batch.page.shard_table import FAILURES
from routelmt_batch.rows import LARGE, SMALL
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.gains import gain_of
from routelmt_batch.stages.job_report import JobReport
from routelmt_batch.stats.drift import Drift, apart, at_most
from routelmt_batch.stats.selection import GainOrder

_QUANTILES = 100
_MOST_SHARDS = 20


def compare(job: FinishedJob, other: FinishedJob, rows: int) -> dict[str, Any]:
    """What differs between two jobs.

    A row is in both if it has the same shard, row number, text and languages in both.

    Returns:
        `figures`, `status`, `reason` and `direction` (share to large), each by name as [job, other];
        `drift` of the scores from the other's, None if a job has no scores; `settings` that differ; and
        `routed`: see Routed, with at most `rows` examples.
    """
    pair = (job.report, other.report)
    routed, moved = _routed(job, other, rows), drift(job, other)
    compared: dict[str, Any] = plain(
        {
            "names": [job.report.name, other.report.name],
            "folders": [str(job.folder.root), str(other.folder.root)],
            "figures": _paired([_figures(report) for report in pair]),
            "status": _paired([report.status for report in pair]),
            "reason": _paired([report.reason for report in pair]),
            "direction": _paired([_shares(report) for report in pair], None),
            "drift": vars(moved) if moved else None,
            "settings": dict(_settings(*pair)),
            "routed": vars(routed),
        }
    )
    return compared


def _figures(report: JobReport) -> dict[str, float | None]:
    failed = sum(report.status[name] for name in FAILURES)
    return {
        "rows": report.rows,
        "share planned for large": report.fraction.planned,
        "share translated by large": report.fraction.actual,
        "threshold": report.threshold,
        "mean predicted gain": report.gain.all.mean,
        "predicted gain bought": report.predicted_gain_bought,
        "rows that a model failed on": failed,
        "share that a model failed on": failed / report.rows if report.rows else None,
        "tokens of small": sum(report.tokens.get(SMALL, {}).values()),
        "tokens of large": sum(report.tokens.get(LARGE, {}).values()),
        "seconds": report.seconds,
    }


def _shares(report: JobReport) -> dict[str, float | None]:
    """By direction, the share of its rows that the large model translated."""
    return {name: part["large"] / part["rows"] for name, part in report.direction.items()}


def _paired(sides: Sequence[Mapping[str, Any]], missing: int | None = 0) -> dict[str, list[Any]]:
    """Both values of every key, in the first one's order."""
    return {key: [side.get(key, missing) for side in sides] for side in sides for key in side}


def drift(job: FinishedJob, other: FinishedJob) -> Drift | None:
    """How far a job's scores have moved from another's; None if one of them has no scores."""
    size = other.report.budget.rows_with_gain
    if not size:
        return None
    ranks = [max(1, math.ceil(size * step / _QUANTILES)) for step in range(_QUANTILES + 1)]
    selected = GainOrder(other.gains).select([size - rank + 1 for rank in ranks])
    quantiles = np.array([first.threshold for first in selected], np.float64)
    (below, rows), (below_other, rows_other) = (at_most(side.gains(), quantiles) for side in (job, other))
    return apart(below / rows, below_other / rows_other, rows, rows_other) if rows else None


def _settings(a: JobReport, b: JobReport) -> Iterator[tuple[str, list[Any]]]:
    """The settings, models and inputs that differ between the jobs."""
    sides = [_made_from(report) for report in (a, b)]
    for key, values in _paired(sides, None).items():
        if values[0] != values[1]:
            yield key, values


def _made_from(report: JobReport) -> dict[str, Any]:
    """Fingerprints by name (stages share some, and agree on them), the budget's rule, versions."""
    budget = report.budget
    rule = {
        "budget.fraction": budget.fraction,
        "budget.amount": budget.amount,
        "budget.unit": budget.unit,
        "budget.directions": budget.directions,
        "budget.min_gain": budget.min_gain,
        "budget.threshold": budget.threshold,
        "budget.cap": budget.cap,
    }
    return dict(ChainMap(rule, *report.fingerprints.values(), report.versions))


@dataclass
class Routed:
    """How many rows two jobs have in `common`, and how many of them they routed differently: `ways` counts
    these by route in the other and in the job (`small to large`), `shards` by shard."""

    common: int = 0
    different: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)


def _routed(job: FinishedJob, other: FinishedJob, rows: int) -> Routed:
    routed, theirs = Routed(), set(other.shards)
    for shard in job.shards:
        if shard in theirs:
            for first, now, before in _side_by_side(job, other, shard):
                _count(routed, shard, first, now, before, rows)
    routed.different = routed.shards.total()
    routed.shards = Counter(dict(routed.shards.most_common(_MOST_SHARDS)))
    return routed


def _count(routed: Routed, shard: str, first: int, now: pa.Table, before: pa.Table, rows: int) -> None:
    same = _equal(now, before, "source", "source_lang", "target_lang")
    at = np.flatnonzero(same & ~_equal(now, before, "route"))
    routed.common += int(same.sum())
    if not len(at):
        return
    routed.shards[shard] += len(at)
    now, before, numbers = now.take(at), before.take(at), first + at
    ways = pc.binary_join_element_wise(before["route"], now["route"], " to ")
    routed.ways.update(ways.to_pylist())
    gains = [gain_of(side, "predicted_gain").astype(np.float64) for side in (now, before)]
    moved = np.nan_to_num(np.abs(gains[0] - gains[1]))
    most = np.argsort(-moved, kind="stable")[:rows]
    pairs = zip(
        numbers[most].tolist(), now.take(most).to_pylist(), before.take(most).to_pylist(), strict=True
    )
    new = [
        {"shard": shard, "row": number, "moved": float(size), "now": _clipped(ours), "before": _clipped(old)}
        for size, (number, ours, old) in zip(moved[most], pairs, strict=True)
    ]
    routed.examples = heapq.nlargest(rows, routed.examples + new, key=lambda example: example["moved"])


def _clipped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "source": clip(row["source"]), "translation": clip(row["translation"])}


def _equal(a: pa.Table, b: pa.Table, *columns: str) -> npt.NDArray[np.bool_]:
    """Mask of the rows in which all of the columns are equal."""
    equal = [pc.equal(a[name], b[name]).to_numpy().astype(bool) for name in columns]
    return np.asarray(np.logical_and.reduce(equal))


def _side_by_side(
    job: FinishedJob, other: FinishedJob, shard: str
) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """Stream the rows of a shard that both jobs have, whatever their row groups: the first row's number, and
    the same number of rows from each job."""
    streams = [_texts(job, shard), _texts(other, shard)]
    first, now, before = 0, *(next(stream, None) for stream in streams)
    while now and before:
        size = min(now.num_rows, before.num_rows)
        yield first, now.slice(0, size), before.slice(0, size)
        first += size
        now, before = (
            part.slice(size) if size < part.num_rows else next(stream, None)
            for part, stream in zip((now, before), streams, strict=True)
        )


def _texts(job: FinishedJob, shard: str) -> Iterator[pa.Table]:
    """A shard's texts, languages and output columns, under the same names for every job; nulls as empty."""
    input, outputs = job.spec.input, ("translation", "route", "predicted_gain")
    for _, batch in job.batches(shard, [input.columns.source, *job.languages().values(), *outputs]):
        source_lang, target_lang = languages(batch, input)
        yield pa.table(
            {
                "source": pc.fill_null(batch[input.columns.source].cast(pa.string()), ""),
                "source_lang": pc.fill_null(source_lang, ""),
                "target_lang": pc.fill_null(target_lang, ""),
                "translation": batch["translation"],
                "route": pc.fill_null(batch["route"], "none"),
                "predicted_gain": batch["predicted_gain"],
            }
        )
