"""The specs of the passes over a corpus."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from routelmt_batch.rows import LABEL_NAMES, OUTPUT_NAMES
from routelmt_batch.spec.parts import (
    Budget,
    Corpus,
    Input,
    Models,
    Output,
    Page,
    Prompt,
    Router,
    Run,
    SpecFile,
)
from routelmt_batch.spec.quality import Audit, Checks, Guard, Metric
from routelmt_batch.spec.reuse import Reuse
from routelmt_batch.spec.storage import Storage
from routelmt_batch.spec.values import Uri


class PassSpec(SpecFile):
    """The keys that every pass over a corpus needs."""

    # Names of output columns, which input columns must not have.
    added: ClassVar[tuple[str, ...]] = ()

    name: str = Field(min_length=1, description="Name of the job. Reports and the audit page show it.")
    input: Input
    output: Output
    prompt: Prompt = Prompt()
    run: Run = Run()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _columns_are_not_ours(self) -> Self:
        for name in self.input.columns.model_dump().values():
            if name in self.added:
                raise ValueError(f"input column {name!r} is the name of an output column: rename it")
        return self

    @property
    def also(self) -> tuple[str, ...]:
        """Keys of the columns that shards must have besides text and languages."""
        return ()

    def without_references(self) -> Self:
        """The spec for a metric that reads no references: their column is copied like any other."""
        columns = self.input.columns.model_copy(update={"reference": None})
        return self.model_copy(update={"input": self.input.model_copy(update={"columns": columns})})


class JobSpec(PassSpec):
    """A job that translates a corpus."""

    command = "run"
    added: ClassVar[tuple[str, ...]] = OUTPUT_NAMES

    input: Corpus
    models: Models
    router: Router
    budget: Budget
    checks: Checks = Checks()
    guard: Guard = Guard()
    audit: Audit = Audit()
    reuse: Reuse | None = Field(None, description="Earlier jobs whose work is taken over.")
    translation_memory: Uri | None = Field(
        None,
        description="Folder, or prefix in a store, for scores and translations of all jobs that name it. A "
        "job takes what is there after what `reuse` names, and adds its own at the end. A relative path "
        "starts at the folder where you run the command.",
    )
    metric: Metric | None = Field(
        None, description="Metric that the guard and the audit measure with. Nothing else reads it."
    )
    page: Page = Page()

    @property
    def measures(self) -> bool:
        """Whether the job needs a metric."""
        return self.guard.measures or self.audit.fraction > 0

    @model_validator(mode="after")
    def _metric_where_one_is_needed(self) -> JobSpec:
        if self.measures and self.metric is None:
            by = "guard" if self.guard.measures else "audit"
            raise ValueError(f"{by} needs a metric: give metric: chrf, or comet:<folder or hub name>")
        return self

    @model_validator(mode="after")
    def _escalation_has_a_reason(self) -> JobSpec:
        guard = self.guard
        if guard.escalate_fraction and not self.checks.enabled and guard.escalate_below is None:
            raise ValueError("guard.escalate_fraction needs checks, or escalate_below and a metric")
        return self

    @model_validator(mode="after")
    def _escalation_fits_the_budget(self) -> JobSpec:
        reserved, most = self.guard.escalate_fraction, self.budget.most
        if reserved and self.budget.amount is not None:
            raise ValueError(
                "guard.escalate_fraction reserves a share of the rows: give budget.fraction, not amount"
            )
        if reserved and most is None:
            raise ValueError(
                "guard.escalate_fraction reserves part of the budget: give budget.cap with budget.threshold"
            )
        if most is not None and reserved > most:
            raise ValueError(
                f"guard.escalate_fraction {reserved} is more than the budget {most}: lower it, or raise "
                "the budget"
            )
        return self

    @model_validator(mode="after")
    def _guard_moves_calls(self) -> JobSpec:
        """The guard gives a call from one row to another: their costs and directions may differ."""
        moves, budget = self.guard.mode != "off" or self.guard.escalate_fraction, self.budget
        for key, given in (
            (f"budget.unit {budget.measure}", budget.measure != "calls"),
            ("budget.directions", bool(budget.directions)),
        ):
            if moves and given:
                raise ValueError(
                    f"{key}: the guard moves calls between rows that differ in cost and direction. Leave "
                    "guard.mode and guard.escalate_fraction out, or budget calls without directions"
                )
        return self

    @property
    def also(self) -> tuple[str, ...]:
        return ("reference",) if self.measures and self.input.columns.reference else ()


class ScoreSpec(PassSpec):
    """A pass that scores tables with a router, without the models that it routes between."""

    command = "score"  # of `evaluate` and `calibrate`; in no file

    router: Router


class MeasureSpec(PassSpec):
    """A pass that measures the translations in tables with a metric."""

    command = "measure"  # of `evaluate`; in no file

    metric: Metric

    @property
    def also(self) -> tuple[str, ...]:
        return ("reference",) if self.input.columns.reference else ()


class LabelSpec(PassSpec):
    """Both models translate a parallel corpus, and a metric scores both translations.

    The metric is `chrf` unless another is named. The column of references is `reference` unless
    `input.columns.reference` names another. It holds one translation by people for each row, or a list.
    """

    command = "label"
    added: ClassVar[tuple[str, ...]] = LABEL_NAMES

    models: Models
    metric: Metric = Metric()

    @model_validator(mode="before")
    @classmethod
    def _reference_by_default(cls, value: Any) -> Any:
        """Labels need references. Their column is `reference` unless the spec names another."""
        if isinstance(value, dict) and isinstance(given := value.get("input"), dict):
            columns = given.get("columns") or {}
            if isinstance(columns, dict) and columns.get("reference") is None:
                columns = {**columns, "reference": "reference"}
            value = {**value, "input": {**given, "columns": columns}}
        return value

    @property
    def also(self) -> tuple[str, ...]:
        return ("reference",) if self.input.columns.reference else ()
