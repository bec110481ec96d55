"""`--fail-if`: conditions under which a scheduler treats a finished job as failed.

A condition is a name, perhaps of rows of one direction, `>` and a number: `failed>0.01`,
`skipped[en-zh]>0.01`. One that cannot be evaluated counts as holding, so it is noticed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TypeAlias, TypeVar

import pyarrow as pa

from routelmt_batch.errors import RoutelmtError, UsageError
from routelmt_batch.files.write import Check
from routelmt_batch.languages import UNKNOWN, understood
from routelmt_batch.page.comparison import drift
from routelmt_batch.rows import FAILED, QUARANTINED
from routelmt_batch.spec import near
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.job_report import JobReport
from routelmt_batch.stages.outputs import Report, Verdict
from routelmt_batch.stages.recipe import JobRecipe
from routelmt_batch.store.folder import Folder

AnyReport = TypeVar("AnyReport", bound=Report)
CONDITION_HELD = 4  # the exit code
# What each name measures; a share is never more than 1. The first ones are known by direction, too.
_OF_ROWS = {
    "failed": "share of the rows that failed or were quarantined",
    "skipped": "share of the rows that were skipped",
    "fallback": "share of the rows that the large model failed on and the small one translated",
    "truncated": "share of the rows whose translation was cut off",
    "doubtful": "share of the rows whose translation failed a check",
    "empty": "share of the rows with no text in the source or the translation",
}
_SHARES = _OF_ROWS | {
    "unused_budget": "share of the large model's places without a translation by the large model",
    "ks": "Kolmogorov-Smirnov distance of the scores",
}
_KNOWN = _SHARES | {"psi": "population stability index of the scores"}
_DRIFT = ("psi", "ks")
_OF_LABELS = ("failed", "skipped")  # the conditions for labels
_COUNTED = {"failed": (FAILED, QUARANTINED)}  # keys of a direction's counts; the others' are their names
Drift: TypeAlias = Mapping[str, float | None]  # values by the names in _DRIFT


class _Unknown(Exception):
    """The reason why a condition cannot be evaluated."""


@dataclass(frozen=True)
class Condition:
    """A condition that holds when the value called `name` is more than `limit`: in all rows, or in those of a
    `direction`."""

    name: str
    limit: Decimal
    direction: str | None = None

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises UsageError, with the known names, if the text is not a condition."""
        match = re.fullmatch(r"\s*(\w+)(?:\[([^\]]*)\])?\s*>\s*([\d.]+(?:[eE]-?\d\d?)?)\s*", text)
        try:
            condition = match and cls(match[1], Decimal(match[3]), match[2])
        except InvalidOperation:
            condition = None
        if not condition:
            raise UsageError(
                f"--fail-if {text}: give NAME>NUMBER in quotes (> is special to shells): 'failed>0.01', or "
                "for one direction 'skipped[en-zh]>0.01'"
            )
        name = condition.name
        if name not in _KNOWN:
            known = "; ".join(f"{key}: {meaning}" for key, meaning in _KNOWN.items())
            raise UsageError(
                f"--fail-if {text}: there is no condition {name!r}{near(name, _KNOWN)}. Give one of {known}"
            )
        if name in _SHARES and condition.limit >= 1:
            raise UsageError(f"--fail-if {text}: {name} is never more than 1; give a number below 1")
        return condition if condition.direction is None else condition._of_direction(text)

    def _of_direction(self, text: str) -> Condition:
        """The condition with its direction in LMT's codes, as reports name it."""
        if self.name not in _OF_ROWS:
            raise UsageError(
                f"--fail-if {text}: {self.name} is not known by direction; leave [{self.direction}] out, or "
                f"give one of {', '.join(_OF_ROWS)}"
            )
        codes = str(self.direction).split("-")
        known = [code if code == UNKNOWN else understood(code) for code in codes]
        if len(codes) != 2 or None in known:
            raise UsageError(
                f"--fail-if {text}: {self.direction!r} is not a direction; give two of LMT's codes, or "
                f"{UNKNOWN} for codes that are not understood: en-zh, en-{UNKNOWN}"
            )
        return replace(self, direction="-".join(map(str, known)))

    def __str__(self) -> str:
        of = "" if self.direction is None else f"[{self.direction}]"
        return f"{self.name}{of}>{self.limit}"


def parse(texts: Sequence[str], against: object = None, of_labels: bool = False) -> tuple[Condition, ...]:
    """Parse conditions. If there is an earlier job to compare with, at least one must be about drift.

    Raises:
        UsageError: a text is not a condition, or not one for labels, or no condition is about drift.
    """
    conditions = tuple(map(Condition.parse, texts))
    for condition in conditions:
        if of_labels and (condition.name not in _OF_LABELS or condition.direction):
            lacks = {"psi": "scores", "ks": "scores", "unused_budget": "budget"}
            raise UsageError(
                f"--fail-if {condition}: labels have no {lacks.get(condition.name, 'such counts')}; give "
                f"{' or '.join(f'{name}>NUMBER' for name in _OF_LABELS)}, or leave it out"
            )
    if against and not any(condition.name in _DRIFT for condition in conditions):
        raise UsageError("--against: needs --fail-if 'psi>...' or 'ks>...'; add one, or leave --against out")
    return conditions


@dataclass(frozen=True)
class Conditions:
    """The conditions for a finished job. Drift is from `against`, else from the router's calibration."""

    conditions: tuple[Condition, ...] = ()
    against: FinishedJob | None = None

    @classmethod
    def parse(cls, texts: Sequence[str], against: FinishedJob | None) -> Conditions:
        """Raises UsageError for a text that is not a condition, or if `against` has no scores."""
        conditions = cls(parse(texts, against), against)
        if against and not against.report.budget.rows_with_gain:
            raise UsageError(f"--against {against.folder.root}: none of its rows has a score; give another")
        return conditions

    @property
    def of_drift(self) -> list[Condition]:
        return [condition for condition in self.conditions if condition.name in _DRIFT]

    def check(self, recipe: JobRecipe, folder: Folder) -> None:
        """Raises UsageError, before any expensive work, if a condition could not be evaluated."""
        if self.against and str(self.against.folder.root) == str(folder.root):
            raise UsageError(f"--against {folder.root}: is this job's own output; give an earlier job's")
        card = recipe.router.card
        if self.of_drift and not self.against and not (card and card.calibration):
            raise UsageError(
                f"--fail-if {self.of_drift[0]}: the router has no calibration to measure drift from. Give "
                "an earlier job with --against OUTPUT, or run `routelmt-batch calibrate` on the router"
            )
        for condition in self.conditions:
            if condition.name == "doubtful" and not recipe.spec.checks.enabled:
                raise UsageError(
                    f"--fail-if {condition}: the job makes no checks. Set checks.enabled, or leave the "
                    "condition out"
                )
        most = recipe.budget.most
        for condition in self.conditions:
            if condition.name == "unused_budget" and not most and recipe.budget.amount is None:
                budget_kind = "a threshold without --cap" if most is None else "a budget of 0"
                raise UsageError(
                    f"--fail-if {condition}: {budget_kind} has no places; leave the condition out"
                )

    def judge(self, folder: Folder, report: AnyReport, check: Check) -> AnyReport:
        """Add a verdict on each condition to a finished job's report, and write it again as the job's writer;
        `check` raises if this process is it no more."""
        if not self.conditions:
            return report
        drifted = functools.cache(lambda: self._drift(folder, report))  # once at most: it may read both jobs
        judged = report.model_copy(update={"fail_if": _verdicts(self.conditions, report, drifted)})
        judged.write(folder.job_report, "report", check)
        return judged

    def _drift(self, folder: Folder, report: Report) -> Drift:
        assert isinstance(report, JobReport), "labels have no scores"
        if not self.against:
            known: Drift | None = report.drift.model_dump() if report.drift else None
        else:
            try:
                moved = drift(FinishedJob.read(folder), self.against)
            except (RoutelmtError, OSError, pa.ArrowException) as error:
                raise _Unknown(f"{self.against.folder.root} cannot be read: {error}") from error
            known = vars(moved) if moved else None
        if not known:
            raise _Unknown("no row has a score")
        return known


NO_CONDITIONS = Conditions()


def _verdicts(conditions: Iterable[Condition], report: Report, drifted: Callable[[], Drift]) -> list[Verdict]:
    verdicts = []
    for condition in conditions:
        value, why = None, None
        try:
            value = _value(condition, report, drifted)
        except _Unknown as error:
            why = str(error)
        holds = value is None or value > Fraction(condition.limit)
        measured = None if value is None else float(value)
        verdicts.append(Verdict(condition=str(condition), value=measured, holds=holds, why=why))
    return verdicts


def _value(condition: Condition, report: Report, drifted: Callable[[], Drift]) -> Fraction:
    name = condition.name
    if name in _OF_ROWS:
        return _share(*_rows(condition, report))
    if name == "unused_budget":
        assert isinstance(report, JobReport), "labels have no budget"
        return _share(max(0, report.all_places - report.budget.used), report.all_places)
    moved = drifted()[name]
    if moved is None or not math.isfinite(moved):
        raise _Unknown("it is not a finite number")
    return Fraction(moved)


def _rows(condition: Condition, report: Report) -> tuple[int, int]:
    """The rows that a condition counts, and those that it takes a share of."""
    if not isinstance(report, JobReport):
        return {"failed": report.failed_rows, "skipped": report.skipped_rows}[condition.name], report.rows
    if condition.direction is None:
        directions = list(report.direction.values())
    elif condition.direction in report.direction:
        directions = [report.direction[condition.direction]]
    else:
        raise _Unknown(f"no row is of the direction {condition.direction}")
    keys = _COUNTED.get(condition.name, (condition.name,))
    part = sum(counts.get(key, 0) for counts in directions for key in keys)
    return part, sum(counts["rows"] for counts in directions)


def _share(part: int, whole: int) -> Fraction:
    if not whole:
        raise _Unknown("there is nothing to take a share of")
    return Fraction(part, whole)


def triggered(verdicts: Iterable[Verdict]) -> list[str]:
    """The conditions that hold, each with its value or why it has none."""
    return [
        f"{verdict.condition}: it is {verdict.value:.4g}"
        if verdict.value is not None
        else f"{verdict.condition}: cannot be evaluated ({verdict.why})"
        for verdict in verdicts
        if verdict.holds
    ]
