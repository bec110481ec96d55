"""Metrics as one interface: a scorer of hypotheses, and a signature. It knows names, not how to score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.errors import ModelError
from routelmt_batch.metrics.chrf import sentence_chrf, signature


class Metric(Protocol):
    """Qualities (x100 scale) of rows with `source`, `hypothesis` and `reference`."""

    @property
    def name(self) -> str: ...

    @property
    def needs_reference(self) -> bool: ...

    def signature(self) -> str: ...

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]: ...


@dataclass(frozen=True)
class Chrf:
    """Sentence chrF against the reference, from 0 to 100."""

    name: str = "chrf"
    needs_reference: bool = True

    def signature(self) -> str:
        return signature()

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        return np.array(sentence_chrf(rows["hypothesis"].to_pylist(), rows["reference"].to_pylist()))


def open_metric(source: str) -> Metric:
    """The metric of that name.

    Raises:
        ModelError: it cannot run here.
    """
    if source == "chrf":
        return Chrf()
    raise ModelError(
        f"metric {source}: unbabel-comet cannot live in this environment beside vLLM; the quality "
        "environment that it needs is not there yet. Use chrf"
    )


def describe(metric: Metric) -> dict[str, Any]:
    """A metric as label tables and router cards name it."""
    return {"name": metric.name, "signature": metric.signature()}
