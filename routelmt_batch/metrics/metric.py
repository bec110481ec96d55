"""The interface of metrics: a scorer of hypotheses, and a signature. It knows names, not how to score."""

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
    """Returns the qualities (x100) of rows with `source`, `hypothesis` and, if it needs one, `reference`."""

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
        """Marks the rows whose texts are too long: only the beginning is read."""
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
        ModelError: the checkpoint does not exist, or is not a metric.
        UsageError: the quality environment does not work.
    """
    if pool.source == "chrf":
        return Chrf()
    source = pool.checkpoint
    checkpoint = open_checkpoint(source, pool, "metric")
    if "mt" not in checkpoint.segments or checkpoint.kind == SENTINEL:
        raise ModelError(
            f"metric {pool.source}: its class {checkpoint.kind} scores a source text, not a translation. "
            "Give a checkpoint that scores translations"
        )
    environment = quality.check()
    return Comet(checkpoint, environment.comet_version, environment.python)


def open_checkpoint(source: str, pool: Pool, key: str) -> Checkpoint:
    """The COMET checkpoint that `key` of a spec names.

    Raises:
        ModelError: it does not exist, or its class is not supported.
    """
    files = checkpoints.comet(source, key)
    kind, segments = str(files.hparams.get("class_identifier")), segments_of(files.hparams)
    if not segments:
        raise ModelError(
            f"{key} {source}: its class is {kind}, which does not score single translations. "
            "Give a checkpoint of another class, such as regression_metric"
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
    """A metric's name and signature, as label tables and router cards contain them."""
    return {"name": metric.name, "signature": metric.signature()}
