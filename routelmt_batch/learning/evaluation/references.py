"""Gathers the gain by each reference from label tables, and finds the sources that have several.

A source is a text with its languages. Its references are those of one row, or of several rows: `label` writes
the gain by each reference of a row; without that column a row has the gain by its one reference. This module
knows columns, not what is computed from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.shards import is_text
from routelmt_batch.files.location import Location
from routelmt_batch.learning.gains import (
    GAIN_BY_REFERENCE,
    TOLERANCE,
    Halves,
    OtherGains,
    check_gains,
    halves,
)
from routelmt_batch.learning.labels import reference_column
from routelmt_batch.spec import Texts
from routelmt_batch.stats.measures import Floats, Integers


def reference_columns(file: Location, schema: pa.Schema, texts: Texts) -> list[str]:
    """A table's columns that tell which rows share a source, and the one of gains by reference.

    Raises:
        InputError: `gain_by_reference` holds no lists of numbers.
    """
    found = [
        name
        for name in (texts.columns.source, reference_column(texts))
        if name in schema.names and is_text(schema.field(name).type)
    ]
    check_gains(file, schema)
    return [*found, GAIN_BY_REFERENCE] if GAIN_BY_REFERENCE in schema.names else found


@dataclass
class References:
    """Gathers the gains by reference of label rows, batch by batch. Texts are kept as hashes, 8 bytes each.

    `column` is that of the references; None if the metric read none.
    """

    texts: Texts
    column: str | None
    rows: int = 0
    row: list[Integers] = field(default_factory=list)  # of each gain
    gain: list[Floats] = field(default_factory=list)
    source: list[npt.NDArray[np.int64]] = field(default_factory=list)  # of each row
    reference: list[npt.NDArray[np.int64]] = field(default_factory=list)  # of each gain
    other_gains: OtherGains = field(
        default_factory=lambda: OtherGains(f"the mean of the column {GAIN_BY_REFERENCE!r}")
    )

    def add(self, batch: pa.RecordBatch, gain: Floats, direction: Integers) -> None:
        """Add rows with their gains and the indexes of their directions, (rows,) each."""
        texts = _texts(batch, self.texts.columns.source)
        references = _texts(batch, self.column)
        numbers = range(self.rows, self.rows + len(gain))
        # Without a text, nothing tells whether two rows share a source.
        source = [
            hash((text, where)) if text is not None else hash((row,))
            for text, where, row in zip(texts, direction.tolist(), numbers, strict=True)
        ]
        row, gains = self._gains(batch, gain, references)
        alone = np.bincount(row, minlength=len(gain)) == 1
        # The same reference twice is one: a copied row would agree with itself.
        reference = [
            hash((source[at], references[at]))
            if alone[at] and references[at] is not None
            else hash((source[at], self.rows + at, place))
            for place, at in enumerate(row.tolist())
        ]
        self.row.append(self.rows + row)
        self.gain.append(gains)
        self.source.append(np.array(source, np.int64))
        self.reference.append(np.array(reference, np.int64))
        self.rows += len(gain)

    def _gains(
        self, batch: pa.RecordBatch, gain: Floats, references: list[str | None]
    ) -> tuple[Integers, Floats]:
        """Each gain's row, ascending, and its value. Lists that do not fit their row's gain are left out."""
        if GAIN_BY_REFERENCE not in batch.schema.names:
            row = np.flatnonzero([bool((text or "").strip()) for text in references])
            return row, gain[row]
        lists = batch[GAIN_BY_REFERENCE].cast(pa.list_(pa.float64()))
        of = np.asarray(pc.list_parent_indices(lists).to_numpy(), np.int64)
        values = np.asarray(pc.list_flatten(lists).to_numpy(zero_copy_only=False))
        count = np.bincount(of, minlength=len(gain))
        with np.errstate(invalid="ignore"):  # 0 / 0
            mean = np.bincount(of, values, len(gain)) / count
        self.other_gains.add(np.where(count > 0, mean, gain), gain)
        fits = (np.abs(mean - gain) <= TOLERANCE)[of]
        return of[fits], values[fits]

    def halves(self) -> Halves:
        """Two gains for each source with several references; `of` are the first rows of the sources."""
        if not sum(map(len, self.row)):
            return halves(np.zeros(0), np.zeros(0, np.int64))
        row, gain = np.concatenate(self.row), np.concatenate(self.gain)
        kept = np.sort(np.unique(np.concatenate(self.reference), return_index=True)[1])
        _, first, source = np.unique(np.concatenate(self.source), return_index=True, return_inverse=True)
        return halves(gain[kept], first[source[row[kept]]])


def _texts(batch: pa.RecordBatch, column: str | None) -> list[str | None]:
    if column not in batch.schema.names:
        return [None] * batch.num_rows
    found: list[str | None] = batch[column].to_pylist()
    return found
