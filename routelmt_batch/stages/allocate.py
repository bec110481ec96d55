"""Allocate: select the exact global top-p of the committed scores, frozen before the first translation.

The plan is small for any corpus: it holds the cut and counts. Whether a row is planned for the large model
follows from the cut and its own score.
"""

from __future__ import annotations

import math
import time
from decimal import Decimal
from typing import Any

from routelmt_batch.errors import OutputError, RoutelmtError, WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.record import Record
from routelmt_batch.files.write import sha256
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.rows import SCORES, SKIP_REASONS, TRANSLATIONS
from routelmt_batch.spec import Budget, Guard, JobSpec
from routelmt_batch.stages.gains import CommittedGains
from routelmt_batch.stages.job_report import WhatIf
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stages.tally import DECILES
from routelmt_batch.stats.selection import Cut, GainOrder, Selected, places
from routelmt_batch.store.folder import Folder, damaged
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.workspace import write_spec

WHAT_IF = tuple(Decimal(step) / 20 for step in range(1, 21))


class Plan(Record):
    """It counts calls, and orders them by the total gain of their rows; a job without folded rows has a call
    for each row. `places` is floor(p N) less `held_back`; `large` rows take them (fewer only with
    `min_gain`). With a threshold, `at_least`, `places` is what the cap allows, and the rows that reach the
    threshold take them. The guard later gives the `held_back` places to rows whose small translation is bad.
    With `hypotheses` the small model also translates the large one's rows.

    `reached` counts the rows whose gain reaches `min_gain` or the threshold. `held_out` is what a
    threshold was calibrated on; it is kept here because the router's card may change. `deciles` are those of
    the gains of all rows and of those whose call is `large`. `epoch` is the number of the run that wrote it.
    """

    fraction: Decimal
    min_gain: float | None
    at_least: float | None
    cap: Decimal | None
    held_out: HeldOut | None
    calls_with_gain: int
    reached: int
    places: int
    held_back: int
    hypotheses: bool
    large: int
    small: int
    skipped: int
    predicted_gain: float
    threshold: float | None
    cut: Cut | None
    budgets: list[WhatIf]
    deciles: dict[str, list[float | None]]
    epoch: int = 0


def allocate(workspace: Job) -> Plan:
    """The frozen plan of this job; it is made now if there is none.

    Raises:
        OutputError: see refuse_other_budget.
        WorkChanged: it is lost, and `clean` removed what it was made from.
    """
    path, recipe, ledger = workspace.folder.plan, workspace.recipe, workspace.ledger
    budget, guard = recipe.budget, workspace.spec.guard
    refuse_other_budget(workspace.folder, ledger, budget, guard)
    frozen = _frozen_plan(workspace)
    if frozen and ledger.epoch in (0, frozen.epoch):
        _record(workspace)
        return frozen
    if ledger.cleaned and not frozen:
        raise WorkChanged(
            f"{path}: missing or damaged, and `clean` removed the scores that it was made from. The job's "
            "output is not affected. Restore the file; `routelmt-batch verify` says what else is damaged"
        )
    started = time.time()
    made = frozen or make_plan(workspace)
    ledger.take()
    _record(workspace)
    # Also if it is right: see workspace.keep_manifest.
    plan = made.model_copy(update={"epoch": ledger.epoch})
    plan.write(path, "plan", ledger.check)
    frozen_guard = guard.model_dump(mode="json")
    ledger.record("plan", **budget.model_dump(mode="json"), guard=frozen_guard, sha256=sha256(path))
    if not frozen:
        record_time(ledger, "allocate", workspace.rows, started)
    return plan


def _frozen_plan(workspace: Job) -> Plan | None:
    """The job's plan, if it is whole and made by this run's rule."""
    path, recipe, frozen = workspace.folder.plan, workspace.recipe, last_plan(workspace.ledger)
    if not (path.exists() and frozen and sha256(path) == frozen["sha256"]):
        return None
    plan, budget = read_plan(path), recipe.budget
    rule = (budget.fraction, budget.min_gain, recipe.at_least, budget.cap)
    same = (plan.fraction, plan.min_gain, plan.at_least, plan.cap) == rule
    return plan if same and _same(_frozen_guard(frozen), workspace.spec.guard) else None


def _record(workspace: Job) -> None:
    """Write this run's spec beside the plan. A finished job keeps its spec, except for the page's settings,
    because its page may be drawn again."""
    folder, ledger, spec = workspace.folder, workspace.ledger, workspace.spec
    written = folder.read_spec(JobSpec)
    if folder.success.exists():
        spec = written.model_copy(update={"page": spec.page})
    if ledger.epoch or written.dump() != spec.dump():
        write_spec(folder, spec, ledger)


def last_plan(ledger: Ledger) -> dict[str, Any] | None:
    """The ledger's line of the current plan, or None."""
    return next(reversed(list(ledger.events_of("plan"))), None)


def is_begun(folder: Folder, ledger: Ledger) -> bool:
    """Whether rows were routed under the current plan, which freezes it."""
    return bool(ledger.rows(TRANSLATIONS) or any(ledger.events_of("guard")) or folder.success.exists())


def refuse_other_budget(folder: Folder, ledger: Ledger, budget: Budget, guard: Guard) -> None:
    """Raises OutputError if rows were translated, or the job was finished, under another budget or guard."""
    frozen = last_plan(ledger)
    if not frozen or not is_begun(folder, ledger):
        return
    new = budget.model_dump(mode="json")
    old = {key: frozen[key] for key in new}
    if Budget.model_validate(old) != budget:
        raise OutputError(
            f"{folder.root}: rows are already routed, so the plan is frozen at {_words(old)}; this command "
            f"has {_words(new)}. Give the same budget, or another --output"
        )
    frozen_guard = _frozen_guard(frozen)
    if not _same(frozen_guard, guard):
        raise OutputError(
            f"{folder.root}: rows are already routed under another guard ({guard_words(frozen_guard)}); this "
            f"command has {guard_words(guard)}. Give the same guard, or another --output"
        )


def _same(one: Guard, other: Guard) -> bool:
    """Whether two guards decide alike. Their routers are compared by the quality stage's fingerprint."""
    alike = {"router": None}
    return one.model_copy(update=alike) == other.model_copy(update=alike)


def _frozen_guard(frozen: dict[str, Any]) -> Guard:
    return Guard.model_validate(frozen["guard"])


def guard_words(guard: Guard) -> str:
    """The guard's settings that are not defaults, in words."""
    given = guard.model_dump(mode="json", exclude_defaults=True, exclude={"router"})
    return ", ".join(f"guard.{key} {value}" for key, value in given.items()) or "guard.mode off"


def _words(budget: dict[str, Any]) -> str:
    given = {key: value for key, value in budget.items() if value is not None}
    return ", ".join(f"budget.{key} {value}" for key, value in given.items())


def make_plan(workspace: Job) -> Plan:
    """Select the rows for the large model: a pure function of the spec and the committed scores.

    The same two reads give what other budgets would buy, and the gains' deciles.
    """
    scored = workspace.ledger.totals(SCORES)
    if scored.rows != workspace.calls:
        raise RoutelmtError(f"{scored.rows} scores for {workspace.calls} calls: a defect, please report it")
    budget, guard, at_least = workspace.spec.budget, workspace.spec.guard, workspace.recipe.at_least
    order = GainOrder(CommittedGains(workspace), budget.min_gain if at_least is None else at_least)
    held_back, most = 0, order.rows
    if budget.most is not None:
        held_back = places(guard.escalate_fraction, order.rows)
        most = places(budget.most, order.rows) - held_back
    large = min(most, order.reached)
    # A threshold says nothing of other budgets.
    worth = order.reached if at_least is None else order.rows
    wanted = [min(places(fraction, order.rows), worth) for fraction in WHAT_IF]
    sizes = {"all": order.rows, "routed": large}
    ranked = [rank for size in sizes.values() for rank in _ranks(size)]
    chosen, *others = order.select([large, *wanted, *ranked])
    cut = chosen.cut if at_least is None or budget.most is not None else Cut.at_least(at_least)
    selected = others[len(wanted) :]
    deciles = {"all": selected[: -len(_ranks(large)) or None], "routed": selected[len(_ranks(order.rows)) :]}
    if workspace.folded_rows:
        deciles = {"all": _of_rows(workspace, None), "routed": _of_rows(workspace, cut) if cut else []}
    skipped = sum(scored.unanswered[reason] for reason in SKIP_REASONS)
    return Plan.of(
        {
            "fraction": budget.fraction,
            "min_gain": budget.min_gain,
            "at_least": at_least,
            "cap": budget.cap,
            "held_out": workspace.recipe.held_out,
            "calls_with_gain": order.rows,
            "reached": order.reached,
            "places": most,
            "held_back": held_back,
            "hypotheses": guard.hypotheses,
            "large": large,
            "small": scored.rows - large - skipped,
            "skipped": skipped,
            "predicted_gain": chosen.gain,
            "threshold": cut.gain if cut else None,
            "cut": cut,
            "budgets": [
                {
                    "fraction": fraction,
                    "rows": bought.rows,
                    "prompt_tokens": bought.weight,
                    "predicted_gain": bought.gain,
                    "threshold": bought.threshold,
                    "all_rows": scored.rows - skipped,
                    "all_prompt_tokens": scored.sums["prompt_tokens"],
                }
                for fraction, bought in zip(WHAT_IF, others, strict=False)
            ],
            "deciles": {name: [one.threshold for one in those] for name, those in deciles.items()},
        }
    )


def _ranks(size: int) -> list[int]:
    """Places of the deciles among so many gains, the highest gain first."""
    return [size - math.ceil(size * tenth / 10) + 1 for tenth in DECILES if size]


def _of_rows(workspace: Job, cut: Cut | None) -> list[Selected]:
    """Deciles of the gains of rows, all or those whose call is inside a cut. Calls have another order."""
    order = GainOrder(CommittedGains(workspace, by_row=True, inside=cut))
    return order.select(_ranks(order.rows))


def read_plan(path: Location) -> Plan:
    """Raises WorkChanged if the file contains something else."""
    try:
        return Plan.read(path)
    except ValueError:
        raise damaged(path) from None
