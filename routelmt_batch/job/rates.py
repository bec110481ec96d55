"""Hours and cost of a budget, from the measured speed of one GPU. It opens no corpus and no engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelmt_batch.errors import SpecError
from routelmt_batch.files.uris import locate
from routelmt_batch.rows import AUDIT_QUALITY, LARGE, QUALITY, SCORES, SMALL, TRANSLATIONS
from routelmt_batch.spec import JobSpec
from routelmt_batch.spec.file import read
from routelmt_batch.spec.rates import Rate, Rates, Work
from routelmt_batch.spec.text import dump
from routelmt_batch.stages.job_report import JobReport, LaneReport, PassReport, WhatIf

ROUTER, METRIC = "router", "metric"
_HEADER = """\
# Measured by {name}: the speed of one GPU of each pool once it runs, and how long the pool takes to start.
# Set gpus to the number that the job will have and price_per_gpu_hour to the price of one. Then run
# `routelmt-batch plan SPEC --rates FILE`. Without GPUs, one engine counts as one GPU.
"""


@dataclass(frozen=True)
class Estimate:
    """Hours and cost of a whole job at one budget. `hours` is its elapsed time. `cost` covers the hours for
    which each pool holds its GPUs; it is None without prices."""

    hours: float
    cost: float | None


def load(uri: str | Path, spec: JobSpec) -> Rates:
    """Read a rates file for a job.

    Raises:
        StoreError: its store does not answer or denies access.
        SpecError: it cannot be read, a key or value is wrong, or the job's guard needs the metric's rate.
    """
    rates = read(locate(str(uri)), (), Rates)
    if spec.guard.measures and not rates.metric:
        raise SpecError(f"{uri}: the job's guard measures translations; add a rate for metric")
    return rates


def estimate(rates: Rates, spec: JobSpec, line: WhatIf) -> Estimate:
    """Hours and cost of a job at a budget, scoring included. The small and the large pool run side by
    side, each on its own GPUs, unless `run.pools` is sequential. Assembly, an audit's sample and
    the prefill of a guard that predicts are not counted."""
    work = workload(spec, line)
    pools: dict[str, Rate] = {ROUTER: rates.router, SMALL: rates.small, LARGE: rates.large}
    if rates.metric:
        pools[METRIC] = rates.metric
    hours = {name: rate.hours(work[name]) for name, rate in pools.items()}
    both = hours[SMALL], hours[LARGE]
    translation = sum(both) if spec.run.pools == "sequential" else max(both)
    costs = [
        hours[name] * rate.gpus * rate.price_per_gpu_hour
        for name, rate in pools.items()
        if rate.price_per_gpu_hour is not None
    ]
    return Estimate(
        hours[ROUTER] + translation + hours.get(METRIC, 0.0),
        sum(costs) if len(costs) == len(pools) else None,
    )


def workload(spec: JobSpec, line: WhatIf) -> dict[str, Work]:
    """The work of each pool at a budget, with the most rows that a guard can measure."""
    guard, everything = spec.guard, Work(line.all_rows, line.all_prompt_tokens)
    large = Work(line.rows, line.prompt_tokens)
    small = Work(everything.rows - large.rows, everything.prompt_tokens - large.prompt_tokens)
    verified = large.rows if guard.verify else 0
    if guard.escalate_below is not None:
        small_measured = everything.rows
    elif guard.mode == "hypothesis":
        small_measured = min(int(guard.candidates * large.rows), everything.rows)
    else:
        small_measured = verified
    return {
        ROUTER: everything,
        SMALL: everything if guard.hypotheses else small,
        LARGE: large,
        METRIC: Work(small_measured + verified, 0),
    }


def measured(report: JobReport) -> str:
    """A rates file from a finished job's report: rows/s of each pool that ran, tokens/s of the translators,
    each pool's start and GPUs."""
    rates: dict[str, dict[str, Any]] = {}
    for pool in (ROUTER, SMALL, LARGE, METRIC):
        lanes = [
            (pass_report, label, lane)
            for pass_report in report.passes
            for label, lane in pass_report.lanes.items()
            if _pool(lane) == pool
        ]
        gpus = [_gpus(pass_report, label) for pass_report, label, _ in lanes]
        seconds = sum(lane.seconds * number for (*_, lane), number in zip(lanes, gpus, strict=True))
        if seconds > 0:
            rows_per_second = sum(lane.rows for *_, lane in lanes) / seconds
            rates[pool] = {
                "rows_per_second_per_gpu": round(rows_per_second, 3),
                **_tokens_per_second(report, pool, rows_per_second),
                "start_seconds": max(pass_report.engine_start_seconds for pass_report, *_ in lanes),
                "gpus": gpus[-1],
                "price_per_gpu_hour": None,
            }
    return _HEADER.format(name=report.name) + dump(rates)


def _tokens_per_second(report: JobReport, pool: str, rows_per_second: float) -> dict[str, float]:
    """The speed of a translator's GPU in tokens, by the mean length of its rows in the output."""
    rows, tokens = report.route.get(pool, 0), report.tokens.get(pool, {})
    return (
        {"tokens_per_second_per_gpu": round(rows_per_second * sum(tokens.values()) / rows, 3)} if rows else {}
    )


def _gpus(pass_report: PassReport, label: str) -> int:
    """The GPUs of a lane's engines in a pass; without GPUs, one engine counts as one."""
    return pass_report.gpus.get(label) or 1


def _pool(lane: LaneReport) -> str | None:
    """The pool whose engines a lane ran on, as rates name it. The guard's own router has no rate."""
    match lane.stage:
        case SCORES.name:
            return ROUTER
        case TRANSLATIONS.name:
            return lane.model
        case QUALITY.name | AUDIT_QUALITY.name if lane.model:
            return METRIC
    return None
