"""A finished job, read from its folder: reports, spec, output shards. It loads no model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.errors import OutputError
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.spec import JobSpec
from routelmt_batch.stages.gains import gain_of
from routelmt_batch.stages.job_report import JobReport
from routelmt_batch.stats.selection import Gains
from routelmt_batch.store.folder import Folder, read_json

_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class FinishedJob:
    """`report` is `reports/job.json`; `shards` are the output shards' names, in name order."""

    folder: Folder
    report: JobReport
    spec: JobSpec
    shards: tuple[str, ...]

    @classmethod
    def read(cls, folder: Folder) -> FinishedJob:
        """Raises OutputError if the folder holds no job, or labels."""
        manifest = folder.manifest_of_job()
        if manifest["command"] == "label":
            raise OutputError(
                f"{folder.root}: this folder holds labels, and only a job has an audit page: "
                "give a job's output folder"
            )
        report = JobReport.read(folder.job_report)
        spec = folder.read_spec(JobSpec)
        return cls(folder, report, spec, tuple(shard.name for shard in folder.read_shards(manifest)))

    def shard_report(self, name: str) -> dict[str, Any]:
        return read_json(self.folder.report(name))

    def languages(self) -> dict[str, str]:
        """The language columns by spec key; a language that is a constant has none."""
        return {
            key: getattr(self.spec.input.columns, key)
            for key in ("source_lang", "target_lang")
            if getattr(self.spec.input, key) is None
        }

    def batches(
        self, shard: str, columns: list[str], wanted: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Stream columns of an output shard: each batch with the row number of its first row.

        Row groups without any of the `wanted` rows are not read.
        """
        with parquet_file(self.folder.data(shard)) as file:
            end = 0
            for group in range(file.num_row_groups):
                first, end = end, end + file.metadata.row_group(group).num_rows
                if wanted is not None and not ((wanted >= first) & (wanted < end)).any():
                    continue
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    yield first, batch
                    first += batch.num_rows

    def gains(self, keys: bool = True, ranks: Collection[int] | None = None) -> Iterator[Gains]:
        """Stream the predicted gains of every output row. See selection.Parts."""
        for rank, shard in enumerate(self.shards):
            for first, batch in self.batches(shard, ["predicted_gain"]):
                rows = np.arange(first, first + batch.num_rows)
                yield Gains(gain_of(batch, "predicted_gain"), np.full(len(rows), rank, np.int64), rows)
