"""Measures translations by each of their references. It knows columns, and no metric by name.

It is imported in the quality environment, too, and imports only what is installed there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.engines.models import Loading

if TYPE_CHECKING:
    from routelmt_batch.metrics.metric import Metric

_COLUMN = "reference"


@dataclass(frozen=True)
class ByReference:
    """A scorer of rows whose `reference` is a list of one or more: their qualities by each, in its order."""

    metric: Metric

    def load(self) -> object:
        return self.metric.load() if isinstance(self.metric, Loading) else None

    def __call__(self, rows: pa.Table) -> list[list[float]]:
        qualities = iter(self.metric(_one_each(rows)).tolist())
        return [list(itertools.islice(qualities, count)) for count in _counts(rows)]

    def cuts(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Marks the rows whose texts are too long with one of their references."""
        cut = iter(self.metric.cuts(_one_each(rows)).tolist())
        return np.array([any(list(itertools.islice(cut, count))) for count in _counts(rows)], bool)


def _one_each(rows: pa.Table) -> pa.Table:
    """The rows, each as often as it has references, with one of them."""
    index = np.repeat(np.arange(rows.num_rows), _counts(rows))
    texts = [text for several in rows[_COLUMN].to_pylist() for text in several]
    found = rows.drop_columns([_COLUMN]).take(pa.array(index))
    return found.append_column(_COLUMN, pa.array(texts, pa.string()))


def _counts(rows: pa.Table) -> list[int]:
    return [len(several) for several in rows[_COLUMN].to_pylist()]
