"""What `reports/job.json` contains for a job, key by key. Only this model writes and reads it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import Field

from routelmt_batch.files.record import Record
from routelmt_batch.rows import FAILED, LARGE, QUARANTINED, SKIPPED, Route
from routelmt_batch.spec.values import Unit
from routelmt_batch.stages.costs import Line
from routelmt_batch.stages.lengths import Lengths
from routelmt_batch.stages.outputs import Report

Counts = dict[str, int]


class Interval(Record):
    """A figure with its 95% bootstrap interval; null where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class Above(Record):
    """A paired difference of mean gains with its 95% interval; the p-value is two-sided."""

    value: float | None
    low: float | None
    high: float | None
    p_value: float


class Means(Record):
    """Mean predicted and realised gain of some audited rows."""

    rows: int
    predicted: float | None
    realised: float | None


class AuditReport(Record):
    """Predicted against realised gain on the audit's sample. With fewer than two measured rows, or if none of
    them is routed, only the numbers of rows are given."""

    sampled: int
    strata: Counts = Field(description="The job's rows of each stratum, direction and route.")
    fraction: str
    calls: Counts = Field(description="Translations made for the audit, outside the budget.")
    cut: Counts = Field(description="Texts that are longer than the metric reads, by model.")
    rows: int = Field(description="Rows of the sample with both qualities.")
    predicted: float | None = None
    realised: float | None = None
    spearman: Interval | None = None
    mean_delta: dict[str, Interval] | None = Field(
        None, description="Mean gain of routed rows by router, length and chance."
    )
    router_above: dict[str, Above] | None = None
    severe_loss_rate: Interval | None = Field(None, description="Percent of the routed rows.")
    groups: list[Means] | None = Field(None, description="Fifths by predicted gain, the lowest first.")
    directions: dict[str, Means] | None = None


class Calibrated(Record):
    """The calibration of a threshold: its held-out rows, how many reached it, and the 95% interval for the
    fraction of the job's rows that reach it."""

    rows: int
    reached: int
    low: float
    high: float


class BudgetReport(Record):
    """The budget's rule and its result, in calls. With a threshold there are no places to fill: `reached`
    rows have at least that score, and `realised` is the share of rows planned for the large model; a cap may
    lower it.

    With a unit other than calls, `budgeted` and `spent` are in that unit: what the budget allows, and what
    the planned rows are expected to cost. `expected_output` says how well lengths of translations fit."""

    fraction: str | None
    min_gain: float | None
    threshold: float | None
    cap: str | None
    rows_with_gain: int
    calls_with_gain: int
    places: int
    planned: int
    used: int
    unfilled: int | None = None
    reached: int | None = None
    reached_fraction: float | None = None
    realised: float | None = None
    calibrated: Calibrated | None = None
    amount: str | None = None
    unit: Unit = "calls"
    directions: dict[str, dict[str, str]] | None = None
    min_gain_per_cost: float | None = None
    gain_per_cost: float | None = Field(None, description="Of the last row that the plan takes.")
    budgeted: float | None = None
    spent: float | None = None
    expected_output: dict[str, Line] | None = Field(
        None, description="The line of output tokens over prompt tokens, by direction; `other`: all others."
    )


class GuardReport(Record):
    """The guard's settings, what it did, and what that cost."""

    mode: str
    candidates: float
    keep_small_above: float | None
    verify: bool
    margin: float
    escalate_fraction: str
    escalate_below: float | None
    metric: dict[str, Any] | None
    calls: Counts
    kept_small: int
    freed_places_taken: int
    unfilled: int
    held_back: int
    escalated: int
    held_back_unfilled: int
    verified_small: int
    extra_small_translations: int
    measured: Counts
    unknown: Counts = Field(description="Measured rows without a quality.")
    cut: Counts = Field(description="Measured rows that are longer than the metric reads.")


class CodesReport(Record):
    """Language codes of the input that are not LMT's, and how often each occurs."""

    spelled: dict[str, Counts] = Field(
        description="Codes that were understood, by LMT's code: `{en: {EN: 50, en-US: 2}}`."
    )
    unknown: Counts = Field(
        description="Codes that were not understood. `(none)`: null or empty. `(other)`: texts that are no "
        "codes, and codes beyond the first hundred."
    )


class Fraction(Record):
    """Shares of the rows with a gain: planned for the large model, and translated by it."""

    planned: float | None
    actual: float | None


class Changed(Record):
    """Calls whose score or translation could not be taken, and the settings that differ."""

    calls: int
    because: list[str]


class Reused(Record):
    """What was taken from an earlier job, and what could not be taken because of what changed since, in calls
    by kind: score, small and large translation. `success` is the SHA-256 of its `_SUCCESS`; a translation
    memory has none."""

    output: str
    success: str | None
    taken: Counts
    changed: dict[str, Changed]


class WhatIf(Record):
    """What one budget would buy, without a guard: calls (`rows`) and prompt tokens for the large model, the
    summed gain of their rows, the gain (or gain per cost) of the last call. The counts of all translatable
    calls do not depend on the budget. `spent` is in the budget's unit, if that is not calls;
    `predicted_gain_by_gain` is what the same amount buys if the calls with the highest gains come first."""

    fraction: Decimal
    rows: int
    prompt_tokens: int
    predicted_gain: float
    threshold: float | None
    all_rows: int
    all_prompt_tokens: int
    spent: float | None = None
    predicted_gain_by_gain: float | None = None


class Histogram(Record):
    """Counts below the first edge, between edges, and from the last edge on."""

    edges: list[float]
    counts: list[int]


class Distribution(Record):
    rows: int
    infinite: int
    mean: float | None
    min: float | None
    max: float | None
    deciles: list[float | None]
    histogram: Histogram


class Gains(Record):
    all: Distribution
    routed: Distribution


class LaneReport(Record):
    """One pool's share of a pass; `model` is the model whose rows these are, if they are one model's."""

    rows: int
    seconds: float = Field(description="From when its first engine was ready to its last part.")
    stage: str
    model: Route | None


class PassReport(Record):
    """Times of a pass; a resumed pass has one line for each run."""

    name: str
    rows: int
    seconds: float
    engine_start_seconds: float
    started_ahead_seconds: float = Field(
        description="Part of the engines' start that took place while the pass before ran."
    )
    rows_per_second: float = Field(description="After the engines' start.")
    lanes: dict[str, LaneReport]
    gpus: Counts


class ModelReport(Record):
    source: str
    weights: str
    dtype: str


class RouterReport(Record):
    kind: str
    source: str
    weights: str | None = None
    dtype: str | None = None
    metric: dict[str, Any] | None = None


class ModelReports(Record):
    small: ModelReport
    large: ModelReport
    router: RouterReport


class DriftReport(Record):
    """How far the job's scores lie from those that the router was calibrated on."""

    rows: int
    psi: float | None
    ks: float | None
    psi_by_chance: float | None


class JobReport(Report):
    """A finished job: `reports/job.json`. A key that the file lacks does not apply to the job."""

    calls: Counts = Field(description="Rows sent to `score`, and calls to the models `small` and `large`.")
    folded_rows: int = Field(description="Rows with the output of another row's call: they cost no call.")
    used_calls: Counts = Field(description="Calls whose translation is in the output, by model.")
    reused_rows: Counts = Field(description="Calls that earlier jobs saved, by kind: score, small, large.")
    saved_calls: Counts = Field(description="Calls that folding and reuse saved, by kind.")
    reuse: list[Reused]
    status: Counts
    reason: Counts
    planned_route: Counts
    route: Counts
    checks: Counts
    direction: dict[str, Counts] = Field(
        description="Rows by direction: by status, planned for and translated by the large model, truncated, "
        "doubtful, empty (no text in the source or the translation), folded (output of another row's call), "
        "reused (with an earlier job's translation)."
    )
    codes: CodesReport
    budget: BudgetReport
    guard: GuardReport | None
    threshold: float | None
    fraction: Fraction
    predicted_gain_planned: float
    predicted_gain_bought: float
    budgets: list[WhatIf]
    gain: Gains
    tokens: dict[str, Counts]
    lengths: dict[str, Lengths] = Field(
        {}, description="Sums over the large model's translations, by direction, for `budget.fitted_on`."
    )
    passes: list[PassReport]
    seconds: float
    models: ModelReports
    fingerprints: dict[str, dict[str, Any]]
    versions: dict[str, str]
    audit: AuditReport | None
    drift: DriftReport | None
    advice: list[str]
    warnings: list[str]

    @property
    def failed_rows(self) -> int:
        """Rows that should have a translation and have none."""
        return self.status[FAILED] + self.status[QUARANTINED]

    @property
    def skipped_rows(self) -> int:
        """Rows that were given to no model."""
        return self.status[SKIPPED]

    @property
    def large_rows(self) -> int:
        """Rows whose translation is the large model's."""
        return self.route.get(LARGE, 0)

    @property
    def all_places(self) -> int:
        """Places of the budget for the large model, those that the guard holds back included."""
        return self.budget.places + (self.guard.held_back if self.guard else 0)

    @property
    def figures(self) -> dict[str, Any]:
        """See Report."""
        return {
            "rows": self.rows,
            **self.status,
            "unreadable_shards": len(self.unreadable),
            "large": self.large_rows,
            "share_to_large": self.fraction.actual,
            "places": self.all_places,
            "threshold": self.threshold,
            "predicted_gain_bought": self.predicted_gain_bought,
            "seconds": self.seconds,
        }
