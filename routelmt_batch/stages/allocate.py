"""Allocate: select the exact global top-p of the committed scores, frozen before the first translation.

The plan is small for any corpus: it holds the cut and counts. Whether a row is planned for the large model
follows from the cut and its own score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from pydantic import Field

from routelmt_batch import directions
from routelmt_batch.errors import OutputError, RoutelmtError, UsageError, WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.record import Record
from routelmt_batch.files.write import sha256
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.rows import SCORES, SKIP_REASONS, TRANSLATIONS
from routelmt_batch.spec import Budget, Guard, JobSpec
from routelmt_batch.spec.parts import Share
from routelmt_batch.spec.values import amount_of
from routelmt_batch.stages.costs import Spending
from routelmt_batch.stages.gains import CommittedGains, Measure, Rule
from routelmt_batch.stages.job_report import WhatIf
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.ranking import Ranking
from routelmt_batch.stages.recipe import Job, JobRecipe
from routelmt_batch.stages.tally import DECILES
from routelmt_batch.stats.selection import Cut, Cuts, GainOrder, Parts, Selected, places
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

    If directions are named, `cut` is that of the others, and `directions` has theirs. A budget in tokens,
    seconds or money has `spending`: `budgeted` and `spent` are in its unit, `gain_per_cost` is that of the
    last row, no gain is a threshold, and `places` are the `large` rows.

    `reuse` has the SHA-256 of the `_SUCCESS` of each earlier job that scores were taken from, by output.
    """

    fraction: Decimal | None
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
    amount: str | None = None
    min_gain_per_cost: float | None = None
    shares: dict[str, Share] = Field({})
    directions: dict[str, Cut | None] = Field({})
    spending: Spending | None = None
    budgeted: float | None = None
    spent: float | None = None
    gain_per_cost: float | None = None
    reuse: dict[str, str | None] = Field({})

    @property
    def rule(self) -> Rule:
        return rule(self.cut, self.directions, self.spending)


def rule(cut: Cut | None, named: Mapping[str, Cut | None], spending: Spending | None) -> Rule:
    """The rule by which rows are taken, from the cuts of the directions that are named and of all others."""
    cuts = Cuts(cut, {directions.number(name): own for name, own in named.items()})
    return Rule(cuts, Measure(spending.costs if spending else None, bool(named)))


def allocate(workspace: Job) -> Plan:
    """The frozen plan of this job; it is made now if there is none.

    Raises:
        OutputError: see refuse_other_budget.
        WorkChanged: it is lost, and `clean` removed what it was made from.
    """
    path, recipe, ledger = workspace.folder.plan, workspace.recipe, workspace.ledger
    budget, guard = recipe.budget, workspace.spec.guard
    refuse_other_budget(workspace.folder, ledger, recipe)
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
    spending = recipe.spending.as_json() if recipe.spending else None
    ledger.record(
        "plan",
        **budget.model_dump(mode="json"),
        spending=spending,
        guard=frozen_guard,
        sha256=sha256(path),
    )
    if not frozen:
        record_time(ledger, "allocate", workspace.rows, started)
    return plan


def _frozen_plan(workspace: Job) -> Plan | None:
    """The job's plan, if it is whole and made by this run's rule."""
    path, recipe, frozen = workspace.folder.plan, workspace.recipe, last_plan(workspace.ledger)
    if not (path.exists() and frozen and sha256(path) == frozen["sha256"]):
        return None
    plan, budget = read_plan(path), recipe.budget
    made_by = (plan.fraction, plan.amount, plan.min_gain, plan.min_gain_per_cost, plan.at_least, plan.cap)
    now = (
        budget.fraction,
        budget.amount,
        budget.min_gain,
        budget.min_gain_per_cost,
        recipe.at_least,
        budget.cap,
    )
    same = made_by == now and (plan.shares, plan.spending) == (budget.directions, recipe.spending)
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


def refuse_other_budget(folder: Folder, ledger: Ledger, recipe: JobRecipe) -> None:
    """Raises OutputError if rows were translated, or the job was finished, under another budget or guard, or
    with other costs of a row."""
    frozen, budget, guard = last_plan(ledger), recipe.budget, recipe.spec.guard
    if not frozen or not is_begun(folder, ledger):
        return
    new = budget.model_dump(mode="json")
    old = {key: frozen[key] for key in new if key in frozen}
    if Budget.model_validate(old) != budget:
        raise OutputError(
            f"{folder.root}: rows are already routed, so the plan is frozen at {_words(old)}; this command "
            f"has {_words(new)}. Give the same budget, or another --output"
        )
    if (costs := frozen.get("spending")) and Spending.model_validate(costs) != recipe.spending:
        raise OutputError(
            f"{folder.root}: rows are already routed, by other rates or lengths of translations than "
            "budget.rates and budget.fitted_on have now. Restore these files, or give another --output"
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
    given = {key: value for key, value in budget.items() if value not in (None, {})}
    return ", ".join(f"budget.{key} {value}" for key, value in given.items())


def make_plan(workspace: Job) -> Plan:
    """Select the rows for the large model: a pure function of the spec and the committed scores.

    The same two reads give what other budgets would buy, and the gains' deciles. With costs or directions
    the rows are not taken by gain alone, and the scores are read more often.

    Raises:
        UsageError: the floors and ceilings by direction cannot be met.
    """
    scored = workspace.ledger.totals(SCORES)
    if scored.rows != workspace.calls:
        raise RoutelmtError(f"{scored.rows} scores for {workspace.calls} calls: a defect, please report it")
    budget, guard, recipe = workspace.spec.budget, workspace.spec.guard, workspace.recipe
    at_least, spending, measure = recipe.at_least, recipe.spending, recipe.measure
    gains = CommittedGains(workspace, measure)
    ranking = Ranking(gains, budget.directions, recipe.least)
    held_back, most = _allowed(budget, guard, ranking, spending)
    amount = min(most, ranking.worth)
    # A threshold says nothing of other budgets.
    worth = ranking.worth if at_least is None else ranking.cost
    wanted = [min(places(fraction, ranking.cost), worth) for fraction in WHAT_IF]
    # Then the rows that are taken are the first ones by their own gain.
    by_gain = measure == Measure() and not workspace.folded_rows
    sizes = {"all": ranking.rows, "routed": amount} if by_gain else {}
    ranked = [place for size in sizes.values() for place in _places_of_deciles(size)]
    chosen, *others = ranking.select([amount, *wanted, *ranked])
    assert chosen
    cut = Cut.at_least(at_least) if at_least is not None and budget.is_open else chosen.cut
    cuts = ranking.cuts(cut)
    if by_gain:
        thresholds = (selected.threshold for selected in others[len(wanted) :] if selected)
        deciles = {name: [next(thresholds) for _ in DECILES] if size else [] for name, size in sizes.items()}
    else:
        deciles = _deciles_of_rows(gains, rule(cut, cuts, spending))
    compared: list[Selected | None] = [None] * len(wanted)
    if spending:  # what the same amounts buy if the rows are ranked by gain alone
        compared = Ranking(gains.by_gain(), budget.directions).select(wanted)
    skipped = sum(scored.unanswered[reason] for reason in SKIP_REASONS)
    every = {"all_rows": scored.rows - skipped, "all_prompt_tokens": scored.sums["prompt_tokens"]}
    plan: dict[str, Any] = {
        "fraction": budget.fraction,
        "min_gain": budget.min_gain,
        "at_least": at_least,
        "cap": budget.cap,
        "held_out": recipe.held_out,
        "calls_with_gain": ranking.rows,
        "reached": ranking.reached,
        "places": chosen.rows if spending else most,
        "held_back": held_back,
        "hypotheses": guard.hypotheses,
        "large": chosen.rows,
        "small": scored.rows - chosen.rows - skipped,
        "skipped": skipped,
        "predicted_gain": chosen.gain,
        "threshold": cut.value if cut and not spending else None,
        "cut": cut,
        "budgets": [
            _what_if(fraction, bought, spending, other) | every
            for fraction, bought, other in zip(WHAT_IF, others, compared, strict=False)
            if bought
        ],
        "deciles": deciles,
    }
    for event in workspace.ledger.events_of("reuse"):
        plan["reuse"] = {job["output"]: job["success"] for job in event["jobs"]}
    if budget.amount is not None:
        plan["amount"] = budget.amount
    if budget.directions:
        plan |= {"shares": budget.directions, "directions": cuts}
    if spending:
        plan |= _spent(budget, spending, most, chosen)
    return Plan.of(plan)


def _spent(budget: Budget, spending: Spending, most: int, chosen: Selected) -> dict[str, Any]:
    """What the plan adds for a budget in tokens, seconds or money."""
    last = chosen.threshold
    return {
        "min_gain_per_cost": budget.min_gain_per_cost,
        "spending": spending,
        "budgeted": spending.units(most),
        "spent": spending.units(chosen.cost),
        "gain_per_cost": None if last is None else spending.gain_per_unit(last),
    }


def _allowed(budget: Budget, guard: Guard, ranking: Ranking, spending: Spending | None) -> tuple[int, int]:
    """The places that are held back, and the most that the plan may spend besides.

    Raises:
        UsageError: the floors by direction need more.
    """
    held_back, most = 0, ranking.cost
    if not budget.is_open:
        held_back = places(guard.escalate_fraction, ranking.rows)
        most = _most(budget, spending, ranking.cost) - held_back
    if ranking.floors.cost > most:
        raise UsageError(_too_many_floors(ranking, most, spending))
    return held_back, most


def _most(budget: Budget, spending: Spending | None, everything: int) -> int:
    """The most that the budget allows: calls, or millionths of a token. `everything`: what all rows cost."""
    if budget.amount is None:
        assert budget.most is not None
        return places(budget.most, everything)
    number, _ = amount_of(budget.amount)
    return min(spending.micro(number) if spending else int(number), everything)


def _too_many_floors(ranking: Ranking, most: int, spending: Spending | None) -> str:
    cost, allowed = (
        f"{spending.units(amount):,.6g} {spending.unit}" if spending else f"{amount:,} calls"
        for amount in (ranking.floors.cost, most)
    )
    return (
        f"budget.directions: the smallest shares need {cost} ({ranking.floors_in_words()} rows), but the "
        f"budget allows {allowed}. Raise the budget, or lower min"
    )


def _what_if(
    fraction: Decimal, bought: Selected, spending: Spending | None, by_gain: Selected | None
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "fraction": fraction,
        "rows": bought.rows,
        "prompt_tokens": bought.weight,
        "predicted_gain": bought.gain,
        "threshold": bought.threshold,
    }
    if spending:
        line["spent"] = spending.units(bought.cost)
        line["predicted_gain_by_gain"] = by_gain.gain if by_gain else None
        if bought.threshold is not None:
            line["threshold"] = spending.gain_per_unit(bought.threshold)
    return line


def _places_of_deciles(rows: int) -> list[int]:
    return [rows - math.ceil(rows * tenth / 10) + 1 for tenth in DECILES if rows]


def _deciles_of_rows(gains: CommittedGains, taken: Rule) -> dict[str, list[float | None]]:
    """Deciles of the gains of all rows, and of those whose call a rule takes: calls have another order."""
    of_rows = replace(gains, by_row=True)
    return {"all": _deciles(of_rows), "routed": _deciles(replace(of_rows, inside=taken))}


def _deciles(parts: Parts) -> list[float | None]:
    order = GainOrder(parts)
    return [selected.threshold for selected in order.select(_places_of_deciles(order.rows))]


def read_plan(path: Location) -> Plan:
    """Raises WorkChanged if the file contains something else."""
    try:
        return Plan.read(path)
    except ValueError:
        raise damaged(path) from None
