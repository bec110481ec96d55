"""What a job's stages need: its models, router and metric, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.engines.arguments import check_engines
from routelmt_batch.errors import UsageError
from routelmt_batch.metrics.metric import Metric, describe, open_metric
from routelmt_batch.progress import Bars
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.routers.registry import open_router
from routelmt_batch.routers.router import Router
from routelmt_batch.rows import (
    AUDIT_QUALITY,
    AUDIT_TRANSLATIONS,
    CHECKS,
    DECISIONS,
    FOLDS,
    FOLLOWERS,
    QUALITY,
    SAMPLE,
    SCORES,
    TRANSLATIONS,
)
from routelmt_batch.spec import Budget, JobSpec
from routelmt_batch.stages.costs import Spending
from routelmt_batch.stages.gains import Measure
from routelmt_batch.store import checkpoints
from routelmt_batch.store.checkpoints import check_pool
from routelmt_batch.store.manifest import of_input, of_translations
from routelmt_batch.store.pickles import check_pickles
from routelmt_batch.store.workspace import Workspace


@dataclass(frozen=True)
class JobRecipe:
    """A job's spec and router, and the quality router and metric of guard and audit. See workspace.Recipe.

    If the budget is a threshold, `at_least` is its score, and `held_out` the rows it was calibrated on. If it
    is in tokens, seconds or money, `spending` says what a row costs."""

    spec: JobSpec
    router: Router
    at_least: float | None
    held_out: HeldOut | None
    quality_router: Router | None
    metric: Metric | None
    spending: Spending | None

    @property
    def budget(self) -> Budget:
        """The spec's budget, with a calibrated threshold replaced by its number, and without the files that
        `spending` is made from."""
        budget = self.spec.budget
        files: dict[str, Any] = {"rates": None, "fitted_on": None}
        # The unit is named only if it is not calls, however it was given.
        unit = budget.measure if self.spending else None
        return budget.model_copy(update={"threshold": self.at_least, "unit": unit, **files})

    @property
    def measure(self) -> Measure:
        """What the budget reads of a row."""
        return Measure(self.spending.costs if self.spending else None, bool(self.spec.budget.directions))

    @property
    def least(self) -> float | None:
        """The lowest value of a row that the budget takes: see selection.Gains."""
        budget = self.spec.budget
        if self.spending and budget.min_gain_per_cost is not None:
            return self.spending.value(budget.min_gain_per_cost)
        return budget.min_gain if self.at_least is None else self.at_least

    @property
    def prompt_limit_tokens(self) -> int:
        """Longest prompt that the router can score and that leaves both models room for their output."""
        return self.router.prompt_limit(self.spec.models.prompt_limit_tokens)

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        metric = {
            "metric": describe(self.metric) if self.metric else None,
            "input.columns.reference": self.spec.input.columns.reference,
        }
        return {
            SCORES.name: {
                **of_input(self.spec, shards, limit),
                "input.fold": self.spec.input.fold,
                "translation_memory": self.spec.translation_memory,
                "reuse": self.spec.reuse.model_dump(mode="json") if self.spec.reuse else None,
                **self.router.fingerprint(),
                "longest prompt in tokens": self.prompt_limit_tokens,
            },
            TRANSLATIONS.name: of_translations(self.spec),
            QUALITY.name: {
                **metric,
                **(
                    {f"guard's {key}": value for key, value in self.quality_router.fingerprint().items()}
                    if self.quality_router
                    else {}
                ),
            },
            # These follow from the other stages; the guard's settings are frozen with the plan.
            CHECKS.name: {"checks": self.spec.checks.model_dump(mode="json", exclude={"replicas"})},
            DECISIONS.name: {},
            FOLDS.name: {},
            FOLLOWERS.name: {},
            SAMPLE.name: self._audit(),
            AUDIT_TRANSLATIONS.name: of_translations(self.spec),
            AUDIT_QUALITY.name: metric,
        }

    def _audit(self) -> dict[str, Any]:
        audit = self.spec.audit
        return {"audit": audit.model_dump(mode="json")} if audit.fraction else {}


Job: TypeAlias = Workspace[JobSpec, JobRecipe]


def check_models(spec: JobSpec, bars: Bars | None = None) -> JobRecipe:
    """Check every model and the router before anything runs, and warn of what cannot be checked.

    Raises:
        SpecError: an `engine` key is no argument of vLLM.
        ModelError: a model is missing or its context is too short, or the router does not fit the job.
        UsageError: the router cannot serve the budget, or the metric lacks references.
    """
    check_engines(spec.models)
    for key, pool in (("models.small", spec.models.small), ("models.large", spec.models.large)):
        check_pool(key, pool, bars)
    small = spec.models.small
    weights = checkpoints.weights_hash(small.source)
    router = open_router(spec, spec.router, small, weights)
    for key in ("min_gain", "min_gain_per_cost"):
        if (least := getattr(spec.budget, key)) is not None and not router.predicts_gain:
            raise UsageError(
                f"budget.{key} {least}: scores of router.kind {spec.router.kind} are not "
                f"gains; only their order is meaningful. Leave budget.{key} out"
            )
    spending = Spending.of_job(spec)
    if spending and not router.predicts_gain:
        raise UsageError(
            f"budget.unit {spending.unit}: scores of router.kind {spec.router.kind} are not gains, so there "
            "is no gain per cost. Use budget.unit calls, or a router that predicts gains"
        )
    threshold = _threshold(spec, router)
    for warning in router.warnings:
        (bars or Bars.none()).warn(warning)
    metric = _metric(spec)
    check_pickles(spec, bars or Bars.none())
    if not (metric and metric.needs_reference):
        spec = spec.without_references()
    return JobRecipe(spec, router, *threshold, _quality_router(spec, weights), metric, spending)


def _quality_router(spec: JobSpec, weights: str) -> Router | None:
    """The router of the guard's mode `predicted`, or None."""
    pool = spec.guard.router
    if spec.guard.mode != "predicted" or pool is None:
        return None
    return open_router(spec, pool, spec.models.small, weights, "guard.router")


def _metric(spec: JobSpec) -> Metric | None:
    """The metric of guard and audit, or None if neither measures."""
    if not (spec.measures and spec.metric):
        return None
    metric = open_metric(spec.metric)
    if metric.needs_reference and not spec.input.columns.reference:
        raise UsageError(
            f"metric {metric.name} needs references: name their column with "
            "input.columns.reference, or choose a reference-free metric"
        )
    return metric


def _threshold(spec: JobSpec, router: Router) -> tuple[float | None, HeldOut | None]:
    """The budget's threshold, if it has one, and the held-out rows that it was calibrated on.

    Raises:
        UsageError: it is `calibrated`, and the router has no threshold calibrated for this fraction.
    """
    budget = spec.budget
    if budget.threshold != "calibrated":
        return budget.threshold, None
    if router.card is None:
        raise UsageError(
            f"budget.threshold calibrated: router.kind {spec.router.kind} cannot be calibrated; only "
            "a router folder written by `train` can. Give the threshold as a number"
        )
    known = router.card.calibration.known() if router.card.calibration else {}
    if budget.fraction is not None and budget.fraction in known:
        return known[budget.fraction]
    raise UsageError(
        f"budget.threshold calibrated: {spec.router.source} has no threshold for "
        f"fraction {budget.fraction} (it has: {', '.join(map(str, known)) or 'none'}). Run "
        "`routelmt-batch calibrate` with this fraction, or give the threshold as a number"
    )
