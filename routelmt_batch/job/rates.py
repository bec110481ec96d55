"""Hours and cost of a budget, from the measured speed of one GPU. It opens no corpus and no engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from routelmt_batch.errors import SpecError
from routelmt_batch.files.uris import locate
from routelmt_batch.rows import AUDIT_QUALITY, LARGE, QUALITY, SCORES, SMALL, TRANSLATIONS
from routelmt_batch.spec import JobSpec, Part, SpecFile
from routelmt_batch.spec.file import read
from routelmt_batch.spec.text import dump
from routelmt_batch.stages.job_report import JobReport, LaneReport, PassReport, WhatIf

ROUTER, METRIC = "router", "metric"
_HOUR_S = 3600.0
_HEADER = """\
# Measured by {name}: the speed of one GPU of each pool once it runs, and how long the pool takes to start.
# Set gpus to the number that the job will have and price_per_gpu_hour to the price of one. Then run
# `routelmt-batch plan SPEC --rates FILE`. Without GPUs, one engine counts as one GPU.
"""


class Work(NamedTuple):
    rows: int
    prompt_tokens: int


class Rate(Part):
    """The measured speed of one GPU of a pool, in rows or in prompt tokens (the time includes the output),
    the pool's number of GPUs, and the price of one GPU per hour."""

    rows_per_second_per_gpu: float | None = Field(None, gt=0, allow_inf_nan=False)
    prompt_tokens_per_second_per_gpu: float | None = Field(None, gt=0, allow_inf_nan=False)
    start_seconds: float = Field(0, ge=0, allow_inf_nan=False)  # until its engines take the first row
    gpus: int = Field(ge=1)
    price_per_gpu_hour: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_measure(self) -> Rate:
        if (self.rows_per_second_per_gpu is None) == (self.prompt_tokens_per_second_per_gpu is None):
            raise ValueError("give either rows_per_second_per_gpu or prompt_tokens_per_second_per_gpu")
        return self

    def hours(self, work: Work) -> float:
        """From the start of the pool's engines to its last row; 0 without rows."""
        if not work.rows:
            return 0.0
        if self.rows_per_second_per_gpu is not None:
            seconds = work.rows / self.rows_per_second_per_gpu
        else:
            assert self.prompt_tokens_per_second_per_gpu is not None
            seconds = work.prompt_tokens / self.prompt_tokens_per_second_per_gpu
        return (self.start_seconds + seconds / self.gpus) / _HOUR_S


class Rates(SpecFile):
    """The file that `plan --rates` reads."""

    command: ClassVar[str] = "plan"

    router: Rate
    small: Rate
    large: Rate
    metric: Rate | None = None  # for a guard that measures

    @classmethod
    def starter(cls) -> str:
        return "`routelmt-batch report OUTPUT --rates` writes one"

    @model_validator(mode="after")
    def _metric_by_rows(self) -> Rates:
        if self.metric and self.metric.rows_per_second_per_gpu is None:
            raise ValueError("metric: give rows_per_second_per_gpu, because a metric reads no prompt")
        return self


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
    """A rates file from a finished job's report: rows/s of each pool that ran, its start, its GPUs."""
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
            rates[pool] = {
                "rows_per_second_per_gpu": round(sum(lane.rows for *_, lane in lanes) / seconds, 3),
                "start_seconds": max(pass_report.engine_start_seconds for pass_report, *_ in lanes),
                "gpus": gpus[-1],
                "price_per_gpu_hour": None,
            }
    return _HEADER.format(name=report.name) + dump(rates)


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
