"""The model of `evaluation.json`. Nothing else writes the file."""

from __future__ import annotations

from typing import Any

from routelmt_batch.files.record import Record
from routelmt_batch.stages.job_report import Interval

Metrics = dict[str, Interval]  # by the names of measures.METRICS


class Extent(Record):
    """Rows, and how many of them go to the large model."""

    rows: int
    k: int


class Bucket(Record):
    """Rows with a gain above `over`, up to and including `to` (null: no bound)."""

    over: float | None
    to: float | None
    rows: int
    percent: float | None


class ExpectedRandom(Record):
    note: str
    spearman: float
    hit_rate: float
    mean_delta: float
    severe_loss_rate: float


class Curve(Record):
    """Mean quality of the corpus by budget."""

    budget: list[float]
    quality: list[float]


class Against(Record):
    """The paired difference in mean_delta from the best baseline."""

    baseline: str
    mean_delta: Interval
    p_value: float


class Attainable(Record):
    """What can be had on sources with several references: MeanDelta of the ceiling, of the oracle of one
    reference, and of random routing, and Pearson's correlation of the gains by two references."""

    sources: int
    k: int
    mean_delta: Interval
    oracle_mean_delta: Interval
    random_mean_delta: Interval
    correlation: Interval


class Ceiling(Record):
    """See evaluation.ceiling: over all sources with several references, and in each direction."""

    overall: Attainable
    directions: dict[str, Attainable]


class Shares(Record):
    """(MeanDelta - random) / (ceiling - random) in percent, on the sources with several references."""

    overall: Interval
    directions: dict[str, Interval]


class RouterResult(Record):
    """One router: over all rows, in each direction, and the mean over directions."""

    overall: Metrics
    directions: dict[str, Metrics]
    macro: Metrics
    buckets: list[Bucket]
    curve: Curve
    area: dict[str, float | None]
    against_best_baseline: Against | None
    attainable_share: Shares | None = None


class Evaluation(Record):
    """Every router on the same rows under the same budget."""

    rows: int
    budget: str
    k: int
    severe_loss_gain: float
    quality_small: float
    quality_large: float
    directions: dict[str, Extent]
    buckets_of_all_rows: list[Bucket]
    expected_random: ExpectedRandom
    resamples: int
    interval_percent: int
    seed: int
    baselines: list[str]
    best_baseline: str | None
    ceiling: Ceiling | None = None
    ceiling_note: str | None = None
    routers: dict[str, RouterResult]
    warnings: list[str]
    signature: dict[str, Any]
    versions: dict[str, str]

    @property
    def figures(self) -> dict[str, Any]:
        """The figures for a scheduler: those of each router over all rows."""
        routers = {
            name: {metric: found.value for metric, found in router.overall.items()}
            for name, router in self.routers.items()
        }
        return {"rows": self.rows, "places": self.k, "routers": routers}
