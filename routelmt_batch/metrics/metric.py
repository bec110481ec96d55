"""Metrics as one interface: a scorer of hypotheses, and a signature. It knows names, not how to score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.engines import quality
from routelmt_batch.errors import ModelError
from routelmt_batch.metrics.chrf import sentence_chrf, signature
from routelmt_batch.metrics.comet import SENTINEL, Checkpoint, Comet, segments_of
from routelmt_batch.spec import Metric as MetricPool
from routelmt_batch.spec import Pool
from routelmt_batch.store import checkpoints


class Metric(Protocol):
    """Qualities (x100 scale) of rows with `source`, `hypothesis` and, where it needs one, `reference`."""

    @property
    def name(self) -> str: ...

    @property
    def needs_reference(self) -> bool: ...

    @property
    def python(self) -> str | None:
        """The interpreter that it runs in; None: any."""
        ...

    def signature(self) -> str: ...

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]: ...

    def cuts(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows it reads the beginning of only."""
        ...


@dataclass(frozen=True)
class Chrf:
    """Sentence chrF against the reference, from 0 to 100."""

    name: str = "chrf"
    needs_reference: bool = True
    python: None = None

    def signature(self) -> str:
        return signature()

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        return np.array(sentence_chrf(rows["hypothesis"].to_pylist(), rows["reference"].to_pylist()))

    def cuts(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        return np.zeros(rows.num_rows, bool)


def open_metric(pool: MetricPool) -> Metric:
    """The metric that a pool names, checked.

    Raises:
        ModelError: a checkpoint that is not there, or is of no metric.
        UsageError: the quality environment does not work.
    """
    if pool.source == "chrf":
        return Chrf()
    source = pool.checkpoint
    found = open_checkpoint(source, pool, "metric")
    if "mt" not in found.segments or found.kind == SENTINEL:
        raise ModelError(f"metric {pool.source}: its class {found.kind} judges a source text, no translation")
    environment = quality.check()
    return Comet(found, environment.comet_version, environment.python)


def open_checkpoint(source: str, pool: Pool, key: str) -> Checkpoint:
    """A COMET checkpoint, as `key` of a spec names it.

    Raises:
        ModelError: it is not there, or of a class that is not known here.
    """
    files = checkpoints.comet(source, key)
    kind, segments = str(files.hparams.get("class_identifier")), segments_of(files.hparams)
    if not segments:
        raise ModelError(
            f"{key} {source}: its class is {kind}, and no COMET class that scores single translations"
        )
    return Checkpoint(
        files.source,
        files.name,
        kind,
        segments,
        files.sha256,
        "float32" if pool.dtype == "auto" else pool.dtype,
        pool.max_num_batched_tokens,
        pool.max_num_seqs,
    )


def describe(metric: Metric) -> dict[str, Any]:
    """A metric as label tables and router cards name it."""
    return {"name": metric.name, "signature": metric.signature()}
