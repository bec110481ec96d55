"""The committed scores as gains, for selection, with costs and directions where a budget needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.rows import SCORES, SKIP_REASONS
from routelmt_batch.stages.costs import Costs
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
    """Reads the committed gains of a job, weighted by prompt tokens. See selection.Parts."""

    workspace: AnyWorkspace
    measure: Measure = Measure()

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
        if keys:
            # The ledger knows the shard of a part of one: reading its column takes longest.
            columns += ["row"] if len(entry.spans) == 1 else ["row", "shard"]
        table = self.workspace.ledger.read(entry, columns)
        rank = row = _NO_KEYS
        if keys:
            row = table["row"].to_numpy()
            if "shard" in columns:
                rank = _ranks(table, self.workspace.ranks)
            else:
                (shard,) = entry.spans
                rank = np.full(table.num_rows, self.workspace.ranks[shard], np.int64)
        return self.measure(Gains(gain_of(table), rank, row, prompt_tokens(table)), table)


def _ranks(table: pa.Table, ranks: dict[str, int]) -> npt.NDArray[np.int64]:
    shard = table["shard"].combine_chunks().dictionary_encode()
    rank_of = np.array([ranks[name] for name in shard.dictionary.to_pylist()], np.int64)
    return np.asarray(rank_of[shard.indices.to_numpy()])


def gain_of(table: pa.Table | pa.RecordBatch, column: str = "gain") -> npt.NDArray[np.float32]:
    return np.asarray(table[column].to_numpy(zero_copy_only=False), np.float32)


def prompt_tokens(table: pa.Table) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(table["prompt_tokens"], 0).to_numpy(), np.int64)


def is_skipped(table: pa.Table) -> npt.NDArray[np.bool_]:
    skipped = pc.is_in(table["reason"], pa.array(SKIP_REASONS))
    return np.asarray(skipped.to_numpy(), bool)
