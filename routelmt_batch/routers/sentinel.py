"""The sentinel router's scorer: a COMET checkpoint that reads only the source, in the quality environment.

This module is imported there, and imports only what is installed there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.metrics.comet import Checkpoint, Samples, samples_of


@dataclass(frozen=True)
class Sentinel:
    """Minus the quality that the checkpoint expects of the source's translation (Perrella et al., ACL 2024).

    See lanes.Scorer; the rows need a `source`.
    """

    checkpoint: Checkpoint
    python: str

    def load(self) -> object:
        return self.checkpoint.load()

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        return -self.checkpoint.predict(self._samples(rows))

    def cuts(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Marks the rows whose text is too long: only the beginning is read."""
        return self.checkpoint.cuts(self._samples(rows))

    def _samples(self, rows: pa.Table) -> Samples:
        # Unified COMET calls its only text `mt`; the library sorts by `src`.
        texts = rows["source"].to_pylist()
        return samples_of({"src": texts, **dict.fromkeys(self.checkpoint.segments, texts)})
