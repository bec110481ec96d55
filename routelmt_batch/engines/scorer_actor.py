"""The actor that holds a scorer. It may run in the quality environment: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from routelmt_batch.engines.lanes import Mask, Scorer, scored


class ScorerActor:
    """Runs a scorer in an actor of its own; what it loads stays for the next block."""

    def __init__(self, scorer: Scorer, cuts: Callable[[pa.Table], Mask] | None = None) -> None:
        self.scorer = scorer
        self.cuts = cuts
        self.proven = False

    def __call__(self, block: pa.Table) -> pa.Table:
        found = scored(block, self.scorer, self.cuts, self.proven)
        self.proven = self.proven or found["score"].null_count < found.num_rows
        return found
