"""Allocate: the exact global top-p of the committed scores, frozen before the first translation.

The plan is small whatever the corpus: the cut, and counts per shard. Whether a row is planned for
the large model follows from its own score.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from routelmt_batch.atomic import sha256, write_json, write_text
from routelmt_batch.errors import OutputError, RoutelmtError
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.rows import SCORES, SKIP_REASONS, TRANSLATIONS
from routelmt_batch.spec import Budget, Guard, JobSpec
from routelmt_batch.spec.file import read
from routelmt_batch.stages.passes import record_time
from routelmt_batch.stages.recipe import Job
from routelmt_batch.stats.selection import Cut, Gains, count, cuts, places
from routelmt_batch.store.folder import Folder
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
    """`places` is floor(p N); `large` rows take them (fewer only with `min_gain`). With a threshold,
    `at_least`, `places` is what the cap allows, and as many rows as reach the threshold take them.
    `held_back` places are not of the plan: the guard gives them to small translations that need the
    large model. With `hypotheses` the small model translates the large one's rows, too.

    `reached` rows are good enough: of all with a gain those that reach the lowest gain or the
    threshold. `held_out` is what a calibrated threshold came from: the router's card may change.
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
    """What a budget would buy: rows and prompt tokens to the large model, summed gain, threshold; and
    those of all translatable rows, which do not depend on it."""

    fraction: Decimal
    rows: int
    prompt_tokens: int
    predicted_gain: float
    threshold: float | None
    all_rows: int
    all_prompt_tokens: int


def allocate(workspace: Job) -> Plan:
    """The frozen plan of this job, made now if there is none.

    Raises:
        OutputError: translations were made under another budget.
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
    started = time.time()
    plan = make_plan(workspace)
    _record(workspace)
    write_json(path, _dump(plan), "plan")
    frozen_guard = guard.model_dump(mode="json")
    ledger.record("plan", **budget.model_dump(mode="json"), guard=frozen_guard, sha256=sha256(path))
    record_time(ledger, "allocate", workspace.rows, started)
    return plan


def _record(workspace: Job) -> None:
    """Keep the spec that the plan is of, as this run has it. A finished job was made as it says, but its
    page may be drawn again."""
    path, spec = workspace.folder.spec, workspace.spec
    if workspace.folder.success.exists():
        spec = read(path, (), JobSpec).model_copy(update={"page": spec.page})
    if path.read_text(encoding="utf8") != spec.dump():
        write_text(path, spec.dump(), "spec")


def last_plan(ledger: Ledger) -> dict[str, Any] | None:
    """The ledger's line of the plan that stands."""
    return next(reversed(list(ledger.events_of("plan"))), None)


def is_begun(folder: Folder, ledger: Ledger) -> bool:
    """Whether rows were routed under the plan that stands, which freezes it."""
    return bool(ledger.rows(TRANSLATIONS) or any(ledger.events_of("guard")) or folder.success.exists())


def refuse_other_budget(folder: Folder, ledger: Ledger, budget: Budget, guard: Guard) -> None:
    """Raises OutputError if rows were translated, or the job was finished, under another budget or guard."""
    frozen = last_plan(ledger)
    if not frozen or not is_begun(folder, ledger):
        return
    asked = budget.model_dump(mode="json")
    before = {key: frozen[key] for key in asked}
    if Budget.model_validate(before) != budget:
        raise OutputError(
            f"{folder.root}: its plan is frozen at {_words(before)}, and rows are translated under it; "
            f"asked for now: {_words(asked)}. Give the same budget, or another --output"
        )
    if not _same(_frozen_guard(frozen), guard):
        old, new = guard_words(_frozen_guard(frozen)), guard_words(guard)
        raise OutputError(
            f"{folder.root}: rows are routed under another guard ({old}); asked for now: {new}. "
            "Give the same one, or another --output"
        )


def _same(one: Guard, other: Guard) -> bool:
    """Whether guards decide alike; what their router is made from is the quality stage's to compare."""
    alike = {"router": None}
    return one.model_copy(update=alike) == other.model_copy(update=alike)


def _frozen_guard(frozen: dict[str, Any]) -> Guard:
    return Guard.model_validate(frozen["guard"])


def guard_words(guard: Guard) -> str:
    """What is set of a guard."""
    given = guard.model_dump(mode="json", exclude_defaults=True, exclude={"router"})
    return ", ".join(f"guard.{key} {value}" for key, value in given.items()) or "guard.mode off"


def _words(budget: dict[str, Any]) -> str:
    given = {key: value for key, value in budget.items() if value is not None}
    return ", ".join(f"budget.{key} {value}" for key, value in given.items())


def make_plan(workspace: Job) -> Plan:
    """Select the rows for the large model from the committed scores; a pure function of both.

    A threshold alone needs no global selection: one read of the scores counts what reaches it.
    """
    scored = workspace.ledger.rows(SCORES)
    if scored != workspace.rows:
        raise RoutelmtError(f"{scored} scores for {workspace.rows} rows: a defect, please report it")
    budget, at_least = workspace.spec.budget, workspace.recipe.at_least
    cut: Cut | None
    held_back = 0
    if at_least is not None and budget.cap is None:
        cut, wanted, reached = Cut.at_least(at_least), None, None
    else:
        lowest = budget.min_gain if at_least is None else float(np.float32(at_least))
        rows_with_gain = count(gains(workspace))
        held_back = places(workspace.spec.guard.escalate_fraction, rows_with_gain)
        most = places(budget.fraction if budget.cap is None else budget.cap, rows_with_gain)
        wanted = most - held_back
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
    """One read of the scores: rows of each shard by route, rows with a gain, summed gain of the routed."""
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
    """What each budget would buy, in as many reads of the scores as one budget takes."""
    fractions = list(fractions)
    rows_with_gain = count(gains(workspace))
    worth = count(gains(workspace), workspace.spec.budget.min_gain)
    wanted = [min(places(fraction, rows_with_gain), worth) for fraction in fractions]
    found = cuts(lambda: gains(workspace), wanted, len(workspace.shards))
    tokens, bought = [0] * len(wanted), [0.0] * len(wanted)
    all_rows = all_tokens = 0
    for table in _tables(workspace):
        part = as_gains(table, workspace.ranks)
        prompt_tokens = pc.fill_null(table["prompt_tokens"], 0).to_numpy()
        translatable = ~is_skipped(table)
        all_rows += int(translatable.sum())
        all_tokens += int(prompt_tokens[translatable].sum(dtype=np.int64))
        for index, cut in enumerate(found):
            routed = admitted(cut, part)
            tokens[index] += int(prompt_tokens[routed].sum(dtype=np.int64))
            bought[index] += summed(part.gain[routed])
    return [
        WhatIf(fraction, rows, token, gain, cut.gain if cut else None, all_rows, all_tokens)
        for fraction, rows, token, gain, cut in zip(fractions, wanted, tokens, bought, found, strict=True)
    ]


def summed(gains: npt.NDArray[np.float32]) -> float:
    """Sum of the finite gains."""
    return float(gains[np.isfinite(gains)].sum(dtype=np.float64))


def _tables(workspace: AnyWorkspace) -> Iterator[pa.Table]:
    for entry in workspace.ledger.parts(SCORES):
        # A part is small: its file alone, without threads, reads four times as fast as a dataset of it.
        with pq.ParquetFile(workspace.ledger.part_path(entry)) as file:
            yield file.read(use_threads=False)


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
    found = pc.is_in(table["reason"], pa.array(SKIP_REASONS))
    return np.asarray(found.to_numpy(), bool)


def _dump(plan: Plan) -> dict[str, Any]:
    value = asdict(plan)
    value["fraction"] = str(plan.fraction)
    value["cap"] = None if plan.cap is None else str(plan.cap)
    value["threshold"] = plan.threshold
    return value


def read_plan(path: Path) -> Plan:
    value = json.loads(path.read_text(encoding="utf8"))
    del value["threshold"]
    value["fraction"] = Decimal(value["fraction"])
    value["cap"] = Decimal(value["cap"]) if value["cap"] is not None else None
    value["held_out"] = HeldOut(**value["held_out"]) if value["held_out"] else None
    value["cut"] = Cut(**value["cut"]) if value["cut"] else None
    value["shards"] = {name: ShardPlan(**shard) for name, shard in value["shards"].items()}
    return Plan(**value)
