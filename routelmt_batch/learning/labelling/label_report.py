"""The model of `reports/job.json` for labels. Nothing else writes or reads the file."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from routelmt_batch.files.record import Record
from routelmt_batch.learning.labels import Signature
from routelmt_batch.rows import UNTRANSLATABLE
from routelmt_batch.stages.lengths import Lengths
from routelmt_batch.stages.outputs import Report

Counts = dict[str, int]


class Reliability(Record):
    """How well one reference's gain tells another's: Pearson's correlation of the two gains of the rows with
    several references, with a 95% interval. Null: not defined."""

    rows: int
    correlation: float | None
    low: float | None
    high: float | None


class Means(Record):
    """Rows of a direction, or all rows; mean qualities and gain of the labelled ones, if there are any."""

    rows: int
    labelled: int
    quality_small: float | None = None
    quality_large: float | None = None
    gain: float | None = None
    gain_standard_deviation: float | None = None
    reliability: Reliability | None = None


class LabelReport(Report):
    """Finished labels: `reports/job.json`. A key that is missing in the file does not apply."""

    labelled: int
    unlabelled: Counts = Field(description="Rows without a label, by reason.")
    cut: Counts = Field(description="Translations that are longer than the metric reads, by model.")
    overall: Means
    direction: dict[str, Means]
    lengths: dict[str, Lengths] = Field(
        {}, description="Sums over the large model's translations, by direction, for `budget.fitted_on`."
    )
    signature: Signature
    versions: dict[str, str]

    @property
    def failed_rows(self) -> int:
        """Rows that a model or the metric failed on."""
        return sum(rows for reason, rows in self.unlabelled.items() if reason not in UNTRANSLATABLE)

    @property
    def skipped_rows(self) -> int:
        """Rows that were given to no model."""
        return sum(rows for reason, rows in self.unlabelled.items() if reason in UNTRANSLATABLE)

    @property
    def figures(self) -> dict[str, Any]:
        """See Report."""
        return {
            "rows": self.rows,
            "labelled": self.labelled,
            "unlabelled": sum(self.unlabelled.values()),
            "unreadable_shards": len(self.unreadable),
            "gain": self.overall.gain,
        }
