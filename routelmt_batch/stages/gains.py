"""The committed scores as gains, for selection, with costs and directions where a budget needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.rows import FOLDS, SCORES, SKIP_REASONS, TOO_LONG
from routelmt_batch.stages.costs import Costs
from routelmt_batch.stages.stretches import found_in
from routelmt_batch.stages.work import read_part
from routelmt_batch.stats.selection import Cuts, Gains
from routelmt_batch.store.ledger import PartEntry
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Stop, each

_NO_KEYS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Measure:
    """What a budget reads of a row besides its gain: its direction if directions are named, and its cost if
    it has one. Then rows are ordered by gain per cost, unless `by_gain`."""

    costs: Costs | None = None
    directions: bool = False
    by_gain: bool = False

    @property
    def columns(self) -> list[str]:
        return ["direction"] if self.costs or self.directions else []

    def __call__(self, gains: Gains, table: pa.Table) -> Gains:
        """Some gains with the directions and costs of their scores."""
        if not self.columns:
            return gains
        direction = pc.fill_null(table["direction"], -1).to_numpy().astype(np.int16)
        if self.costs is None:
            return replace(gains, direction=direction)
        cost = self.costs(prompt_tokens(table), direction)
        return replace(gains, direction=direction, cost=cost, per_cost=not self.by_gain)


@dataclass(frozen=True)
class Rule:
    """Which rows the plan sends to the large model: it follows from a row's own score."""

    cuts: Cuts
    measure: Measure

    def __call__(self, gains: Gains, scores: pa.Table) -> npt.NDArray[np.bool_]:
        return self.cuts.admits(self.measure(gains, scores))


@dataclass(frozen=True)
class CommittedGains:
    """Reads the committed gains of a job, weighted by prompt tokens. See selection.Parts.

    There is one gain for each call: the total of its rows. With `by_row` there is one for each row, its own;
    with `inside`, only of the rows whose call that rule takes.
    """

    workspace: AnyWorkspace
    measure: Measure = Measure()
    by_row: bool = False
    inside: Rule | None = None

    def by_gain(self) -> CommittedGains:
        """The same rows, with the same costs, ordered by gain alone."""
        return replace(self, measure=replace(self.measure, by_gain=True))

    def __call__(self, keys: bool = True, ranks: Collection[int] | None = None) -> Iterator[Gains]:
        names = None
        if ranks is not None:
            names = {name for name, rank in self.workspace.ranks.items() if rank in ranks}
        entries = (
            entry
            for entry in self.workspace.ledger.parts(SCORES)
            if names is None or not names.isdisjoint(entry.spans)
        )
        with each(lambda entry, stop: self._read(entry, keys, stop), entries) as parts:
            yield from parts

    def _read(self, entry: PartEntry, keys: bool, stop: Stop) -> Gains:
        stop()
        columns = ["gain", "prompt_tokens", *self.measure.columns]
        folded = self.workspace.folded_rows > 0
        if keys or folded or self.inside:
            # The ledger knows the shard of a part of one: reading its column takes longest.
            columns += ["row"] if len(entry.spans) == 1 else ["row", "shard"]
        table = self.workspace.ledger.read(entry, columns)
        gain, tokens = gain_of(table), prompt_tokens(table)
        if "row" not in columns:
            gains = Gains(gain, _NO_KEYS, _NO_KEYS, tokens)
            return gains if self.by_row else self.measure(gains, table)
        names = table["shard"] if "shard" in columns else pa.repeat(next(iter(entry.spans)), table.num_rows)
        rank, row = _by_shard(names, self.workspace.ranks), table["row"].to_numpy()
        copies = copies_of(self.workspace, entry, names, row) if folded else np.ones(len(row), np.int64)
        calls = self.measure(Gains(total_gain(gain, copies), rank, row, tokens), table)
        if not self.by_row:
            return calls
        times = np.where(self.inside.cuts.admits(calls), copies, 0) if self.inside else copies
        return Gains(np.repeat(gain, times), np.repeat(rank, times), np.repeat(row, times))


def copies_of(
    workspace: AnyWorkspace, entry: PartEntry, shard: pa.Array, row: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many rows the call of each row of a part of scores is for."""
    ledger = workspace.ledger
    parts = {
        part.part: part
        for name, span in entry.spans.items()
        for part in ledger.overlapping(FOLDS, name, span.low, span.high + 1)
    }
    copies = np.ones(len(row), np.int64)
    position = _by_shard(shard, workspace.positions) + row
    for part in parts.values():
        folds = read_part(ledger.part_path(part), part.sha256)
        found, at = found_in(folds["position"].to_numpy(), position)  # a part's rows are in order
        copies[found] = folds["copies"].to_numpy()[at[found]]
    return copies


def skipped_rows(workspace: AnyWorkspace) -> Counter[str]:
    """The job's rows that are skipped, by reason. A call that is too long may be for several."""
    ledger = workspace.ledger
    found = Counter({reason: ledger.totals(SCORES).unanswered[reason] for reason in SKIP_REASONS})
    if workspace.folded_rows and found[TOO_LONG]:
        for entry in ledger.parts(SCORES):
            if TOO_LONG in entry.unanswered:
                table = ledger.read(entry, ["shard", "row", "reason"])
                table = table.filter(pc.equal(table["reason"], TOO_LONG))
                copies = copies_of(workspace, entry, table["shard"], table["row"].to_numpy())
                found[TOO_LONG] += int((copies - 1).sum())
    return found


def _by_shard(shard: pa.Array | pa.ChunkedArray, values: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """The value of each row's shard."""
    names = (shard.combine_chunks() if isinstance(shard, pa.ChunkedArray) else shard).dictionary_encode()
    of_name = np.array([values[name] for name in names.dictionary.to_pylist()], np.int64)
    return np.asarray(of_name[names.indices.to_numpy()])


def total_gain(gain: npt.NDArray[np.float32], copies: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """What calls are worth: each one's gain for every row that it is for, as float32."""
    return np.asarray(gain * copies.astype(np.float32), np.float32)


def gain_of(table: pa.Table | pa.RecordBatch, column: str = "gain") -> npt.NDArray[np.float32]:
    return np.asarray(table[column].to_numpy(zero_copy_only=False), np.float32)


def prompt_tokens(table: pa.Table) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(table["prompt_tokens"], 0).to_numpy(), np.int64)


def is_skipped(table: pa.Table) -> npt.NDArray[np.bool_]:
    skipped = pc.is_in(table["reason"], pa.array(SKIP_REASONS))
    return np.asarray(skipped.to_numpy(), bool)
