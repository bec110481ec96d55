"""Allocate: select the exact global top-p of the committed scores, frozen before the first translation.

The plan is small for any corpus: it holds the cut and counts per shard. Whether a row is planned for
the large model follows from the cut and its own score.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.errors import OutputError, RoutelmtError, WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import read_parquet
from routelmt_batch.files.write import sha256, write_json, write_text
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.rows import SCORES, SKIP_REASONS, TRANSLATIONS
from routelmt_batch.spec import Budget, Guard, JobSpec
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stats.selection import Cut, Gains, count, cuts, places
from routelmt_batch.store.folder import Folder, damaged, read_json
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.workspace import AnyWorkspace

WHAT_IF = tuple(Decimal(step) / 20 for step in range(1, 21))


@dataclass(frozen=True)
class ShardPlan:
    """Rows of one shard by planned route."""

    large: int
    small: int
    skipped: int


@dataclass(frozen=True)
class Plan:
    """`places` is floor(p N) less `held_back`; `large` rows take them (fewer only with `min_gain`). With a
    threshold, `at_least`, `places` is what the cap allows, and the rows that reach the threshold take them.
    The guard later gives the `held_back` places to rows whose small translation is bad. With `hypotheses`
    the small model also translates the large one's rows.

    `reached` counts the rows whose gain reaches `min_gain` or the threshold. `held_out` is what a
    threshold was calibrated on; it is kept here because the router's card may change.
    """

    fraction: Decimal
    min_gain: float | None
    at_least: float | None
    cap: Decimal | None
    held_out: HeldOut | None
    rows_with_gain: int
    reached: int
    places: int
    held_back: int
    hypotheses: bool
    large: int
    small: int
    skipped: int
    predicted_gain: float
    cut: Cut | None
    shards: dict[str, ShardPlan]

    @property
    def threshold(self) -> float | None:
        return self.cut.gain if self.cut else None


@dataclass(frozen=True)
class WhatIf:
    """What a budget would buy: rows and prompt tokens for the large model, summed gain, threshold. The
    counts of all translatable rows do not depend on the budget."""

    fraction: Decimal
    rows: int
    prompt_tokens: int
    predicted_gain: float
    threshold: float | None
    all_rows: int
    all_prompt_tokens: int


def allocate(workspace: Job) -> Plan:
    """The frozen plan of this job; it is made now if there is none.

    Raises:
        OutputError: see refuse_other_budget.
        WorkChanged: it is lost, and `clean` removed what it was made from.
    """
    path, recipe, ledger = workspace.folder.plan, workspace.recipe, workspace.ledger
    budget, guard = recipe.budget, workspace.spec.guard
    refuse_other_budget(workspace.folder, ledger, budget, guard)
    frozen = last_plan(ledger)
    if path.exists() and frozen and sha256(path) == frozen["sha256"]:
        plan = read_plan(path)
        rule = (budget.fraction, budget.min_gain, recipe.at_least, budget.cap)
        same = (plan.fraction, plan.min_gain, plan.at_least, plan.cap) == rule
        if same and _same(_frozen_guard(frozen), guard):
            _record(workspace)
            return plan
    if ledger.cleaned:
        raise WorkChanged(
            f"{path}: missing or damaged, and `clean` removed the scores that it was made from. The job's "
            "output is not affected. Restore the file; `routelmt-batch verify` says what else is damaged"
        )
    started = time.time()
    plan = make_plan(workspace)
    _record(workspace)
    write_json(path, _dump(plan), "plan", ledger.check)
    frozen_guard = guard.model_dump(mode="json")
    ledger.record("plan", **budget.model_dump(mode="json"), guard=frozen_guard, sha256=sha256(path))
    record_time(ledger, "allocate", workspace.rows, started)
    return plan


def _record(workspace: Job) -> None:
    """Write this run's spec beside the plan. A finished job keeps its spec, except for the page's settings,
    because its page may be drawn again."""
    path, spec = workspace.folder.spec, workspace.spec
    if workspace.folder.success.exists():
        spec = workspace.folder.read_spec(JobSpec).model_copy(update={"page": spec.page})
    if path.read_text() != spec.dump():
        write_text(path, spec.dump(), "spec", workspace.ledger.check)


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

    A threshold without a cap needs no global selection: one read of the scores counts what reaches it.
    """
    scored = workspace.ledger.rows(SCORES)
    if scored != workspace.rows:
        raise RoutelmtError(f"{scored} scores for {workspace.rows} rows: a defect, please report it")
    budget, at_least = workspace.spec.budget, workspace.recipe.at_least
    cut: Cut | None
    held_back = 0
    if budget.most is None:
        assert at_least is not None, "a threshold without a cap"
        cut, wanted, reached = Cut.at_least(at_least), None, None
    else:
        lowest = budget.min_gain if at_least is None else float(np.float32(at_least))
        rows_with_gain = count(gains(workspace))
        held_back = places(workspace.spec.guard.escalate_fraction, rows_with_gain)
        wanted = places(budget.most, rows_with_gain) - held_back
        reached = rows_with_gain if lowest is None else count(gains(workspace), lowest)
        (cut,) = cuts(lambda: gains(workspace), [min(wanted, reached)], len(workspace.shards))
    shards, rows_with_gain, bought = _counted(workspace, cut)
    large, small, skipped = (
        sum(getattr(shard, name) for shard in shards.values()) for name in ("large", "small", "skipped")
    )
    return Plan(
        fraction=budget.fraction,
        min_gain=budget.min_gain,
        at_least=at_least,
        cap=budget.cap,
        held_out=workspace.recipe.held_out,
        rows_with_gain=rows_with_gain,
        reached=large if reached is None else reached,
        places=rows_with_gain if wanted is None else wanted,
        held_back=held_back,
        hypotheses=workspace.spec.guard.hypotheses,
        large=large,
        small=small,
        skipped=skipped,
        predicted_gain=bought,
        cut=cut,
        shards=shards,
    )


def _counted(workspace: Job, cut: Cut | None) -> tuple[dict[str, ShardPlan], int, float]:
    """Each shard's rows by route, the rows with a gain, and the routed rows' summed gain, in one read."""
    tallies = {name: [0, 0, 0] for name in workspace.shard_rows}
    names = list(tallies)
    rows_with_gain, bought = 0, 0.0
    for table in _tables(workspace):
        part = as_gains(table, workspace.ranks)
        routed = admitted(cut, part)
        skipped = is_skipped(table)
        rows_with_gain += int((~np.isnan(part.gain)).sum())
        bought += summed(part.gain[routed])
        for place, mask in enumerate((routed, ~routed & ~skipped, skipped)):
            counted = np.bincount(part.rank[mask], minlength=len(names))
            for rank in np.flatnonzero(counted):
                tallies[names[rank]][place] += int(counted[rank])
    return {name: ShardPlan(*tally) for name, tally in tallies.items()}, rows_with_gain, bought


def what_if(workspace: Job, fractions: Iterable[Decimal] = WHAT_IF) -> list[WhatIf]:
    """What each budget would buy. Several budgets take no more reads of the scores than one."""
    fractions = list(fractions)
    rows_with_gain = count(gains(workspace))
    worth = count(gains(workspace), workspace.spec.budget.min_gain)
    wanted = [min(places(fraction, rows_with_gain), worth) for fraction in fractions]
    budget_cuts = cuts(lambda: gains(workspace), wanted, len(workspace.shards))
    tokens, bought = [0] * len(wanted), [0.0] * len(wanted)
    all_rows = all_tokens = 0
    for table in _tables(workspace):
        part = as_gains(table, workspace.ranks)
        prompt_tokens = pc.fill_null(table["prompt_tokens"], 0).to_numpy()
        translatable = ~is_skipped(table)
        all_rows += int(translatable.sum())
        all_tokens += int(prompt_tokens[translatable].sum(dtype=np.int64))
        for index, cut in enumerate(budget_cuts):
            routed = admitted(cut, part)
            tokens[index] += int(prompt_tokens[routed].sum(dtype=np.int64))
            bought[index] += summed(part.gain[routed])
    return [
        WhatIf(fraction, rows, token, gain, cut.gain if cut else None, all_rows, all_tokens)
        for fraction, rows, token, gain, cut in zip(
            fractions, wanted, tokens, bought, budget_cuts, strict=True
        )
    ]


def summed(gains: npt.NDArray[np.float32]) -> float:
    """Sum of the finite gains."""
    return float(gains[np.isfinite(gains)].sum(dtype=np.float64))


def _tables(workspace: AnyWorkspace) -> Iterator[pa.Table]:
    for entry in workspace.ledger.parts(SCORES):
        yield read_parquet(workspace.ledger.part_path(entry))


def gains(workspace: AnyWorkspace) -> Iterator[Gains]:
    return (as_gains(table, workspace.ranks) for table in _tables(workspace))


def as_gains(table: pa.Table, ranks: dict[str, int]) -> Gains:
    shard = table["shard"].combine_chunks().dictionary_encode()
    rank_of = np.array([ranks[name] for name in shard.dictionary.to_pylist()], np.int64)
    return Gains(
        gain_of(table),
        rank_of[shard.indices.to_numpy()],
        table["row"].to_numpy().astype(np.int64),
    )


def gain_of(table: pa.Table | pa.RecordBatch, column: str = "gain") -> npt.NDArray[np.float32]:
    return np.asarray(table[column].to_numpy(zero_copy_only=False), np.float32)


def admitted(cut: Cut | None, part: Gains) -> npt.NDArray[np.bool_]:
    return cut.admits(part) if cut else np.zeros(len(part.row), bool)


def is_skipped(table: pa.Table) -> npt.NDArray[np.bool_]:
    skipped = pc.is_in(table["reason"], pa.array(SKIP_REASONS))
    return np.asarray(skipped.to_numpy(), bool)


def _dump(plan: Plan) -> dict[str, Any]:
    value = asdict(plan)
    value["fraction"] = str(plan.fraction)
    value["cap"] = None if plan.cap is None else str(plan.cap)
    value["threshold"] = plan.threshold
    return value


def read_plan(path: Location) -> Plan:
    """Raises WorkChanged if the file contains something else."""
    value = read_json(path)
    try:
        del value["threshold"]
        value["fraction"] = Decimal(value["fraction"])
        value["cap"] = Decimal(value["cap"]) if value["cap"] is not None else None
        value["held_out"] = HeldOut(**value["held_out"]) if value["held_out"] else None
        value["cut"] = Cut(**value["cut"]) if value["cut"] else None
        value["shards"] = {name: ShardPlan(**shard) for name, shard in value["shards"].items()}
        return Plan(**value)
    except (KeyError, TypeError, ArithmeticError):
        raise damaged(path) from None
